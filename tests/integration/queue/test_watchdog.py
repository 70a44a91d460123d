"""A worker whose engine hangs, with a real engine: it ends itself, and its jobs are run."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptflow.client import Client

Eventually = Callable[..., None]
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of two small layers."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello world"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=0,
        bos_token_id=0,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def live(url: str) -> tuple[int, list[str]]:
    try:
        with urllib.request.urlopen(f"{url}/livez", timeout=10) as response:
            return response.status, json.load(response)["failed"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["failed"]


def test_a_worker_whose_engine_hangs_ends_itself_and_its_jobs_are_run_elsewhere(
    own: Client,
    start_worker: Start,
    tiny_model: Path,
    tmp_path: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "none")  # building the kernels takes longer than all the rest
    worker = start_worker(
        app=own.settings.app,
        model=str(tiny_model),
        dtype="float32",
        device="cpu",
        threads="1",
        slots="4",
        slot_tokens="128",
        lease="1",
        watchdog="6",
        metrics_port="0",
    )
    match = re.search(r"probes at (\S+)", worker.output)
    assert match
    url = match[1]
    # The engine works, and a job that waits is nothing to bark at.
    assert own.submit("text.generate", {"text": "hello", "max_tokens": 4}).wait(30).ok
    gate = tmp_path / "gate"
    neighbour = own.submit("bed.gate", {"value": str(gate)})
    eventually(lambda: neighbour.state == "running")
    assert live(url) == (200, [])
    started = time.monotonic()
    hung = own.submit("bed.hang", {"value": str(tmp_path / "hung")})
    eventually(lambda: live(url) == (503, ["engine"]))
    red = time.monotonic() - started
    assert worker.popen.poll() is None, "it ended before a probe could tell"
    assert (hung.state, neighbour.state) == ("running", "running")
    assert worker.popen.wait(30) == 75
    ended = time.monotonic() - started
    # A look counts all of the time since the last one, some of which may have been idle.
    assert 3.3 < red < ended
    assert "has not moved for 6 seconds" in worker.output
    assert re.search(r'testbed.py", line \d+ in <lambda>', worker.output)  # where it hung
    gate.touch()
    again = start_worker(app=own.settings.app, lease="1")
    assert hung.result(30) == {"value": "went on"}
    assert neighbour.result(30) == {"value": "open"}
    assert {job.record.crashes for job in (hung, neighbour)} == {1}
    assert {job.record.attempt for job in (hung, neighbour)} == {1}
    assert again.terminate() == 0
