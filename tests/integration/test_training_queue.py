"""Trainings through the queue: followed, cancelled, and gone on with after a SIGKILL."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gptflow.adapter_info import HEAD_WEIGHTS, LORA_WEIGHTS
from gptflow.client import Client
from gptflow.config import Settings
from gptflow.errors import DataForbidden, ResumeRefused
from gptflow.job import Job
from gptflow.models.adapter_store import AdapterStore
from gptflow.queue.embedded import EmbeddedServer
from gptflow.training.data.source import Source
from gptflow.training.order import TASK
from gptflow.training.parts import data_file
from gptflow.training.runs import RunTable

APP = "taught"
SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a folder of data, and a file outside of it."""
    folder = tmp_path_factory.mktemp("training")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Text: the dog"] * 9, trainer)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=128, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "data").mkdir()
    rows = [
        {"text": f"{word} {n}", "label": label}
        for n in range(60)
        for word, label in (("fine", "good"), ("sad", "bad"))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data" / "rows.jsonl").write_text(lines)
    (folder / "outside.jsonl").write_text(lines)
    (folder / "data" / "link.jsonl").symlink_to(folder / "outside.jsonl")
    return folder


@pytest.fixture(scope="module")
def start_trainer(start: Callable[..., Any], folder: Path) -> Callable[[], Any]:
    def started() -> Any:
        return start(
            "gptflow", "worker", "--train", app=APP, model=str(folder / "model"), lease="2",
            data_dir=str(folder / "home"), train_data=str(folder / "data"), threads="1",
        )  # fmt: skip

    return started


@pytest.fixture
def trainings(server: EmbeddedServer) -> Iterator[Client]:
    settings = Settings(redis_url=server.url, app=APP).training
    with Client(settings=settings) as client:
        yield client


def order(folder: Path, rows: str = "data/rows.jsonl", **settings: Any) -> dict[str, Any]:
    """About a thousand steps of a few milliseconds."""
    file = data_file(folder / rows, "train", "labels", Source()).model_dump(mode="json")
    chosen = {
        "rank": 2, "batch": 8, "epochs": 70, "patience": 999, "evaluations": 1,
        "checkpoint_minutes": 0.002,
    }  # fmt: skip
    return {
        "task": "bed.mood",
        "model": str(folder / "model"),
        "data": [file],
        "settings": chosen | settings,
    }


class Told:
    """What a training tells, read as it comes."""

    def __init__(self, job: Job) -> None:
        self.events: list[dict[str, Any]] = []
        self.resets = 0
        self._stream = job.events(timeout=SECONDS)
        self._left = ""

    def until(self, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until an event that will do."""
        for event in self._stream:
            self.resets += event.kind == "reset"
            *lines, self._left = (self._left + event.text).split("\n")
            found = [json.loads(line) for line in lines if line]
            self.events += found
            if chosen := next(filter(enough, found), None):
                return chosen
        raise AssertionError(f"it ended after {self.events[-3:]}")

    def rest(self) -> list[dict[str, Any]]:
        known = len(self.events)
        with pytest.raises(AssertionError):
            self.until(lambda event: False)
        return self.events[known:]


def is_step(event: dict[str, Any]) -> bool:
    return event["kind"] == "step" and event["step"] >= 20


def weights(folder: Path, reference: str) -> list[str]:
    manifest = AdapterStore(folder / "home" / "adapters").find(reference).manifest
    return [manifest.files[name] for name in (LORA_WEIGHTS, HEAD_WEIGHTS)]


def test_a_training_is_cancelled_and_another_one_killed_and_both_go_on(
    trainings: Client,
    start_trainer: Callable[[], Any],
    folder: Path,
    eventually: Callable[..., None],
) -> None:
    worker = start_trainer()

    # Cancelled: it stops after a step, and the run can be gone on with.
    cancelled = trainings.submit(TASK, order(folder), stream=True)
    told = Told(cancelled)
    step = told.until(is_step)
    assert {"loss", "learning_rate", "tokens_per_s", "figures"} <= step.keys()
    name = told.events[0]["run"]
    assert cancelled.cancel()
    assert cancelled.wait(SECONDS).state == "cancelled"
    run = RunTable(folder / "home" / "runs").find(name)
    eventually(lambda: run.state == "interrupted", SECONDS)
    reached = run.log()[-1]["step"]
    assert reached < step["steps"]
    again = trainings.submit(TASK, {"run": name}, stream=True)
    steps = [event["step"] for event in Told(again).rest() if event["kind"] == "step"]
    first = again.result(SECONDS)
    assert steps[0] == reached + 1
    assert first["run"] == name
    assert first["steps"] == steps[-1] == step["steps"]
    assert first["metrics"]["macro_f1"]["floor"] is not None
    assert any(event.get("figures") for event in told.events)

    # Killed, with the process that trains: another worker goes on from the checkpoint.
    killed = trainings.submit(TASK, order(folder), stream=True)
    told = Told(killed)
    told.until(is_step)
    begun = next(event for event in told.events if event["kind"] == "run")
    run = RunTable(folder / "home" / "runs").find(begun["run"])
    eventually(lambda: (run.folder / "checkpoint.safetensors").exists())
    os.kill(worker.popen.pid, signal.SIGKILL)
    os.kill(begun["pid"], signal.SIGKILL)
    other = start_trainer()
    known = len(told.events)
    events = told.rest()
    assert told.resets == 1
    assert [e["run"] for e in events if e["kind"] == "run"] == [begun["run"]]
    steps = [event["step"] for event in told.events[known:] if event["kind"] == "step"]
    assert steps[0] > 1, "it began anew"
    second = killed.result(SECONDS)
    assert second["run"] == begun["run"]
    assert trainings.transport.job(killed.id).crashes == 1
    assert weights(folder, first["version"]) == weights(folder, second["version"])

    # A worker that is told to stop does not wait for the end of a training.
    left = trainings.submit(TASK, order(folder, epochs=5000), stream=True)
    told = Told(left)
    told.until(is_step)
    assert other.terminate() == 0
    eventually(lambda: trainings.transport.job(left.id).state == "queued")
    assert trainings.transport.job(left.id).attempt == 0
    name = told.events[0]["run"]
    assert RunTable(folder / "home" / "runs").find(name).state == "interrupted"
    assert left.cancel()


def test_data_is_read_only_where_the_worker_may_read_it(
    trainings: Client, start_trainer: Callable[[], Any], folder: Path
) -> None:
    start_trainer()
    for rows in ("outside.jsonl", "data/link.jsonl", "data/../outside.jsonl"):
        with pytest.raises(DataForbidden, match=r"may not read .*outside\.jsonl"):
            trainings.run(TASK, order(folder, rows), timeout=SECONDS)
    changed = order(folder)
    changed["data"][0]["sha256"] = "0" * 64
    with pytest.raises(ResumeRefused, match="not what it was"):
        trainings.run(TASK, changed, timeout=SECONDS)


def test_a_serving_worker_takes_no_training(flow: Client, folder: Path) -> None:
    with Client(settings=flow.settings.training) as trainings:
        job = trainings.submit(TASK, order(folder))
        assert flow.run("text.chat", "Hello", timeout=SECONDS)
        assert job.record.state == "queued"
        assert job.cancel()
