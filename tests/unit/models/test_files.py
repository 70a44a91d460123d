"""Files that lie about what they are."""

import json

import pytest

from gptflow.errors import ModelCorrupt, ModelError, UnsupportedModel
from gptflow.models.files import check_folder, check_safetensors, is_allowed


def test_a_good_folder_passes(model_folder):
    assert check_folder(model_folder)["max_position_embeddings"] == 128


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "claims"),
        (b"\1\0\0", "claims"),
        (b"\0\0\0\0\0\0\0\x80" + b"{}", "claims 9223372036854775808"),
        (b"\xff" * 64, "claims"),
        (b"\x80\x04\x95 a pickle", "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04 a zip file of pickles", "pickle"),
        (b"\4\0\0\0\0\0\0\0nope", "not JSON"),
        (b"\4\0\0\0\0\0\0\0\xff\xfe\xfd\xfc", "not JSON"),
        (b"\2\0\0\0\0\0\0\0[]", "not a JSON object"),
    ],
)
def test_bytes_that_are_no_safetensors_file(tmp_path, data, problem):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelCorrupt, match=problem):
        check_safetensors(path)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": (0, 8), "b": (4, 12)}, "'b' overlaps"),
        ({"a": (0, 8), "b": (0, 8)}, "overlaps"),
        ({"a": (8, 16)}, "gap"),
        ({"a": (0, 8), "b": (16, 24)}, "gap"),
        ({"a": (0, 8), "b": (8, 16), "c": (16, 24)}, "take 24 bytes, the file has 16"),
        ({"a": (0, 8)}, "take 8 bytes, the file has 16"),
        ({"a": (0, 16)}, "do not fit"),
        ({"a": (8, 0)}, "do not fit"),
        ({"a": (-8, 0)}, "do not fit"),
        ({"a": (1 << 70, (1 << 70) + 8)}, "gap"),
    ],
)
def test_offsets_that_lead_astray(tmp_path, helpers, tensors, problem):
    header = {name: helpers.tensor(*span) for name, span in tensors.items()}
    path = tmp_path / "model.safetensors"
    path.write_bytes(helpers.safetensors(header, b"\0" * 16))
    with pytest.raises(ModelCorrupt, match=problem):
        check_safetensors(path)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]},
    ],
)
def test_tensors_that_are_not_described(tmp_path, helpers, spec):
    path = tmp_path / "model.safetensors"
    path.write_bytes(helpers.safetensors({"a": spec}))
    with pytest.raises(ModelCorrupt):
        check_safetensors(path)


def test_a_tensor_named_twice(tmp_path, helpers):
    one = json.dumps(helpers.tensor())
    path = tmp_path / "model.safetensors"
    path.write_bytes(helpers.safetensors(f'{{"a": {one}, "a": {one}}}'.encode()))
    with pytest.raises(ModelCorrupt, match="twice"):
        check_safetensors(path)


def test_metadata_padding_and_empty_tensors_are_fine(tmp_path, helpers):
    header = {
        "__metadata__": {"format": "pt"},
        "a": helpers.tensor(),
        "e": helpers.tensor(8, 8, (0,)),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(helpers.safetensors(json.dumps(header).encode() + b"   "))
    check_safetensors(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_wants_its_own_code_run_is_refused(model_folder, name):
    (model_folder / name).write_text('{"auto_map": {"AutoModel": "modeling_evil.Evil"}}')
    with pytest.raises(UnsupportedModel, match="auto_map"):
        check_folder(model_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_a_configuration_that_is_not_a_json_object(model_folder, text):
    (model_folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        check_folder(model_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_something(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(ModelError, match=name.split(".")[1]):
        check_folder(model_folder)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({}, "weight_map"),
        ({"w": "../../other/model.safetensors"}, "not a weight file"),
        ({"w": "pytorch_model.bin"}, "not a weight file"),
        ({"w": "model-00001-of-00002.safetensors"}, "missing"),
    ],
)
def test_an_index_that_leads_elsewhere(model_folder, parts, problem):
    index = model_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(ModelCorrupt, match=problem):
        check_folder(model_folder)


def test_only_the_files_of_a_model_are_taken():
    taken = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "merges.txt"]
    left = ["pytorch_model.bin", "modeling.py", "onnx/model.safetensors", "../model.safetensors"]
    assert all(map(is_allowed, taken))
    assert not any(map(is_allowed, left))
