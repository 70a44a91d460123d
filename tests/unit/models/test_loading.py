"""What is loaded is what was pulled: every answer names the model by its hash."""

import inspect

import pytest

import gptflow.engine.loader
from gptflow import config
from gptflow.errors import ModelCorrupt
from gptflow.models import ModelStore
from gptflow.queue.engine_factory import load_engine


def test_a_model_that_was_altered_after_it_was_pulled_is_not_served(tmp_path, model_folder):
    cache = tmp_path / "cache"
    pulled = ModelStore(cache).pull(str(model_folder))
    weights = pulled.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    settings = config.load(cache_dir=cache, model=pulled.name, offline=True)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors has been altered"):
        load_engine(settings)


def test_the_engine_gets_what_the_settings_say(tmp_path, model_folder, monkeypatch):
    given = {
        "device": "cpu", "dtype": "float32", "slots": 3, "slot_tokens": 99, "threads": 2,
        "kv_bytes": 1 << 20, "adapter_bytes": 12_345, "prefix_bytes": 6_789,
    }  # fmt: skip
    got = {}
    monkeypatch.setattr(gptflow.engine, "load", lambda folder, **more: got.update(more))
    load_engine(config.load(cache_dir=tmp_path, model=str(model_folder), offline=True, **given))
    assert given == {name: got[name] for name in given}
    every = inspect.signature(gptflow.engine.loader.load).parameters.keys()
    assert every & config.Settings.model_fields.keys() == given.keys()
