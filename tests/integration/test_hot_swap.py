"""Adapters are promoted and rolled back under a running worker that has work to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gptflow.client import Client
from gptflow.config import Settings
from gptflow.models import Model, ModelStore
from gptflow.models.adapter_store import AdapterStore, AdapterVersion
from gptflow.queue.embedded import EmbeddedServer

APP = "swap"
SECONDS = 5.0
"""In which a running worker is to serve what was promoted."""

WIDTH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model; its heads are too narrow for the compiled kernels, which need building."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Text: the dog"] * 9, trainer)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=128, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ModelStore(tmp_path_factory.mktemp("cache")).find(str(folder))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def store(data_dir: Path) -> AdapterStore:
    return AdapterStore(data_dir / "adapters")


def add(store: AdapterStore, model: Model, label: str) -> AdapterVersion:
    """An adapter that says the same to everything."""
    with store.build("mood") as draft:
        bias = torch.tensor([9.0, 0.0] if label == "good" else [0.0, 9.0])
        weights = {"mood.weight": torch.zeros(2, WIDTH), "mood.bias": bias}
        path = draft.folder / "head.safetensors"
        save_file(weights, path)
        manifest = {
            "task": "bed.mood",
            "base": {"id": model.name, "sha256": [model.sha256]},
            "heads": {"mood": {"kind": "classify", "labels": ["good", "bad"]}},
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        }
        (draft.folder / "manifest.json").write_text(json.dumps(manifest))
    assert draft.version is not None
    return draft.version


@pytest.fixture(scope="module")
def versions(store: AdapterStore, model: Model) -> dict[str, AdapterVersion]:
    return {label: add(store, model, label) for label in ("good", "bad")}


@pytest.fixture(scope="module")
def worker(start_worker: Callable[..., Any], model: Model, data_dir: Path, versions: Any) -> Any:
    return start_worker(
        app=APP, model=str(model.path), data_dir=str(data_dir), dtype="float32", slots="8",
        slot_tokens="64", threads="1",
    )  # fmt: skip


@pytest.fixture
def flow(server: EmbeddedServer, worker: Any) -> Iterator[Client]:
    with Client(settings=Settings(redis_url=server.url, app=APP)) as client:
        yield client


class Load:
    """Jobs one after the other from a few threads, with when each was asked and what it said."""

    def __init__(self, flow: Client, threads: int = 4) -> None:
        self.answers: list[tuple[float, list[list[str]]]] = []
        self.failures: list[str] = []
        self._flow = flow
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                answer = self._flow.run("bed.mood", {"value": number}, timeout=30)
                self.answers.append((asked, answer["value"]))
            except Exception as error:
                self.failures.append(repr(error))

    def wait_for(self, label: str | None, *, since: float) -> float:
        """Seconds until a job that was asked since then is answered so; None: by no adapter."""
        while time.monotonic() < since + 30:
            for asked, answer in list(self.answers):
                said, who = answer[0]
                if asked > since and (said if who else None) == label:
                    return asked - since
            time.sleep(0.02)
        raise AssertionError(f"{label} never came; last: {self.answers[-3:]}")


def command(data_dir: Path, model: Model, *args: str) -> Any:
    """A `gptflow adapters` command; its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "gptflow", "adapters", *args, "--json"],
        env=_environment(data_dir, model),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _environment(data_dir: Path, model: Model) -> dict[str, str]:
    import os

    return os.environ | {"GPTFLOW_DATA_DIR": str(data_dir), "GPTFLOW_MODEL": str(model.path)}


def test_aliases_move_under_load(
    flow: Client,
    worker: Any,
    model: Model,
    data_dir: Path,
    store: AdapterStore,
    versions: dict[str, AdapterVersion],
) -> None:
    good, bad = versions["good"], versions["bad"]
    assert flow.run("bed.mood", {"value": 0}, timeout=30)["value"][0][1] is None  # untrained
    with Load(flow) as load:
        for version, label in ((good, "good"), (bad, "bad"), (good, "good")):
            made = command(data_dir, model, "promote", version.reference)
            assert made["adapter"]["promoted"] is True
            assert load.wait_for(label, since=time.monotonic()) < SECONDS
        assert command(data_dir, model, "rollback", "mood")["adapter"]["sha256"] == bad.sha256
        assert load.wait_for("bad", since=time.monotonic()) < SECONDS
        # A damaged version is not served, and what was served before goes on.
        broken = add(store, model, "good")
        # Damaged before a worker can see it, which `promote` would refuse.
        (broken.folder / "head.safetensors").write_bytes(b"nonsense")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "verify", lambda version, **_: version)
            store.promote(broken)
        since = time.monotonic()
        time.sleep(2.5)
        assert {a[0][0] for asked, a in load.answers if asked > since} == {"bad"}
        for _ in range(3):
            store.rollback("mood")
        assert load.wait_for(None, since=time.monotonic()) < SECONDS
    assert load.failures == []
    assert len(load.answers) > 40
    references = {f"mood@{good.sha256}": "good", f"mood@{bad.sha256}": "bad"}
    for _, answer in load.answers:
        who = {reference for _, reference in answer}
        assert len(who) == 1, answer  # no answer mixes two versions
        [reference] = who
        if reference is not None:
            assert {label for label, _ in answer} == {references[reference]}
    assert {answer[0][1] for _, answer in load.answers} == {None, *references}
    assert worker.popen.poll() is None
    assert "cannot be loaded, what was served before is served on" in worker.output
    assert all(version.folder.is_dir() for version in versions.values())
