"""The hub's client, real, against a hub of one model on this machine."""

import hashlib
import http.server
import json
import socket
import threading
import time
import urllib.parse

import pytest

from gptflow.errors import ModelCorrupt, ModelNotFound, UnsupportedModel
from gptflow.models.hub import HubSource

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` as the repository org/tiny, as far as a download asks."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.requested = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def describe(self):
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": self.hashes[name][:40],
                "lfs": {"sha256": self.hashes[name], "size": len(data), "pointerSize": 1}
                if name.endswith(".safetensors")
                else None,
            }
            for name, data in self.files.items()
        ]
        card = {"license": "mit"}
        return {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "cardData": card}

    def tree(self):
        return [
            {"type": "file", "path": name, "size": len(data), "oid": self.hashes[name][:40]}
            for name, data in self.files.items()
        ]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        self.server.requested.append(path)
        prefix = f"/org/tiny/resolve/{COMMIT}/"
        if path == "/":
            self.answer(b"the hub")
        elif path.startswith("/api/models/org/tiny/tree/"):
            self.answer(json.dumps(self.server.tree()).encode())
        elif path.startswith("/api/models/org/tiny"):
            self.answer(json.dumps(self.server.describe()).encode())
        elif (name := path.removeprefix(prefix)) in self.server.files:
            self.answer(self.server.files[name], self.server.hashes[name])
        else:
            self.answer(b"{}", status=404, error="RepoNotFound")

    def answer(self, data, etag="x", status=200, error=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(helpers, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = helpers.write_model(tmp_path / "origin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"evil",
        "onnx/model.safetensors": b"x",
    }
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_the_models_files_are_downloaded(hub, make_store):
    model = make_store(HubSource("org/tiny", endpoint=hub.url), licence=None).pull("tiny")
    assert (model.source, model.licence) == ("hub", "mit")
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert not any(path.endswith((".bin", ".py")) for path in hub.requested)
    manifest = json.loads((model.path / "manifest.json").read_text())
    assert manifest["origin"] == f"org/tiny@{COMMIT}"


def test_weights_other_than_the_hub_lists_are_refused(hub, make_store):
    hub.hashes["model.safetensors"] = "0" * 64
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors of org/tiny"):
        make_store(HubSource("org/tiny", endpoint=hub.url)).pull("tiny")


def test_a_repository_without_safetensors_is_refused(hub, make_store):
    del hub.files["model.safetensors"]
    with pytest.raises(UnsupportedModel, match="no safetensors"):
        make_store(HubSource("org/tiny", endpoint=hub.url)).pull("tiny")


def test_a_model_that_the_hub_does_not_have(hub, make_store):
    with pytest.raises(ModelNotFound, match="no such model"):
        make_store(HubSource("org/other", endpoint=hub.url)).pull("tiny")


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid", "ftp://x"]
)
def test_a_hub_that_does_not_answer_is_given_up_at_once(make_store, endpoint, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    began = time.monotonic()
    with pytest.raises(ModelNotFound, match=r"not answer|web address"):
        make_store(HubSource("org/tiny", endpoint=endpoint)).pull("tiny")
    assert time.monotonic() - began < 6


def test_a_hub_that_accepts_but_stays_silent_is_given_up_in_seconds(make_store, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ModelNotFound, match="not answer"):
            make_store(HubSource("org/tiny", endpoint=url)).pull("tiny")
    assert time.monotonic() - began < 6


def test_the_hubs_own_offline_switch_is_honoured(make_store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        make_store(HubSource("org/tiny")).pull("tiny")


def test_a_known_models_hub_id_means_the_known_model(make_store, helpers):
    source = helpers.source()
    store = make_store(HubSource("Org/Tiny", endpoint="ftp://x"), source)
    assert store.pull("org/tiny").name == "tiny"
    assert store.find("Org/Tiny").name == "tiny"
