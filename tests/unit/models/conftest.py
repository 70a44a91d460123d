"""Models of a few bytes, and sources that give them without a network."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest

from gptflow.errors import ModelCorrupt
from gptflow.models import Entry, Fetched, Licence, ModelStore, SourceUnavailable

APACHE = Licence("apache-2.0", "Apache License 2.0", "https://example.org/apache")
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128}


def safetensors(header, data=b"\0" * 8):
    """The bytes of a safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start=0, stop=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def write_model(folder: Path, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors({"weight": tensor()}))
    return folder


@dataclasses.dataclass
class FakeSource:
    """Gives a tiny model, or raises what it was told to after it wrote a part."""

    title: str = "the test"
    error: Exception | None = None
    kind: str = "hub"
    network: bool = True
    asked: int = 0

    def fetch(self, folder, progress):
        self.asked += 1
        progress("downloading", 0, 3)
        if self.error:
            (folder / "model.safetensors").write_bytes(b"half of it")
            raise self.error
        write_model(folder)
        return Fetched("test@1", "mit")


@pytest.fixture
def model_folder(tmp_path):
    return write_model(tmp_path / "my-model")


@pytest.fixture
def make_store(tmp_path):
    """A store whose catalogue knows one model, `tiny`, from these sources."""

    def make(*sources, offline=False, licence=APACHE, accepted=()):
        entry = Entry("tiny", licence, sources or (FakeSource(),))
        catalogue = {"tiny": entry}
        return ModelStore(tmp_path / "cache", offline, accepted=accepted, catalogue=catalogue)

    return make


@pytest.fixture
def helpers():
    """For test modules, which cannot import this one."""

    class Helpers:
        source = FakeSource
        unavailable = SourceUnavailable
        corrupt = ModelCorrupt

    Helpers.safetensors = staticmethod(safetensors)
    Helpers.tensor = staticmethod(tensor)
    Helpers.write_model = staticmethod(write_model)
    return Helpers
