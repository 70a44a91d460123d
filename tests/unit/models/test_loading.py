"""What is loaded is what was pulled: every answer names the model by its hash."""

import pytest

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
