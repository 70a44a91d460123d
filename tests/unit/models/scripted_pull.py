"""Run as `python scripted_pull.py CACHE SECONDS`: a pull that takes that long half-way."""

import json
import sys
import time
from pathlib import Path

from gptflow.models import Entry, Fetched, Licence, ModelStore


class SlowSource:
    kind, title, network = "hub", "the test", True

    def fetch(self, folder, progress):
        header = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        print("building", flush=True)
        time.sleep(float(sys.argv[2]))
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"data")
        return Fetched("test")


if __name__ == "__main__":
    catalogue = {
        "tiny": Entry("tiny", Licence("mit", "MIT", "https://example.org"), (SlowSource(),))
    }
    store = ModelStore(Path(sys.argv[1]), catalogue=catalogue)
    model = store.pull("tiny", progress=lambda stage, done, total: print(stage, flush=True))
    print(json.dumps({"path": str(model.path), "sha256": model.sha256}))
