"""Pre-training on raw text: windows, perplexity, adapters for any task, models from scratch."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptflow.adapter_info import LORA_WEIGHTS
from gptflow.engine import load
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import ConfigError, NotTrainable, UnsupportedModel
from gptflow.heads import Generate, Generated
from gptflow.models import ModelStore
from gptflow.request import Request
from gptflow.training.data.rows import Origin, PlainText
from gptflow.training.data.source import Source
from gptflow.training.objectives.texts import TextObjective
from gptflow.training.parts import data_file
from gptflow.training.pretraining import begin_pretraining
from gptflow.training.runs import Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.training import train

QUICK: dict[str, Any] = {
    "rank": 4, "batch": 8, "learning_rate": 3e-3, "epochs": 3, "window": 24, "patience": 99,
}  # fmt: skip


def texts(count: int = 60) -> list[dict[str, Any]]:
    """Sentences of one mould, so that the held-out ones can be foreseen from the others."""
    draw = random.Random(1)
    words = ("card", "cash", "refund", "fee", "loan", "rate", "alarm", "music", "taxi", "hotel")
    return [
        {"text": " ".join(f"the {draw.choice(words)} is {draw.choice(words)}." for _ in range(3))}
        for _ in range(count)
    ]


def make_run(tiny: SimpleNamespace, tmp_path: Path, **settings: Any) -> Run:
    config = settings.pop("config", None)
    files = [data_file(tiny.jsonl(tmp_path / "t.jsonl", texts()), "train", "text", Source())]
    return begin_pretraining(
        tiny.table, tiny.model(), files, TrainingSettings.of(**QUICK | settings),
        adapter="domain", config=config,
    )  # fmt: skip


def go(tiny: SimpleNamespace, run: Run, **watch: Any) -> Any:
    model = ModelStore(run.folder.parent.parent / "cache").find(run.record.model_folder)
    return train(run, None, model, tiny.store, context=256, watch=Watch(**watch))


@pytest.mark.parametrize("window", [2, 5, 24, 256])
def test_packing_loses_no_token_and_doubles_none(tiny: SimpleNamespace, window: int) -> None:
    vocabulary = Vocabulary.from_folder(tiny.model().path)
    objective = TextObjective(
        vocabulary, TrainingSettings(window=window), adapter="domain", context=256
    )
    rows = [PlainText(origin=Origin("t", n), text=each["text"]) for n, each in enumerate(texts(9))]
    examples = objective.examples(rows)
    end = vocabulary.document_end
    assert end is not None
    documents = [vocabulary.encode_text(row.text) for row in rows]
    # What is learnt, in order: every token of every document, and an end after each.
    learnt = [token for example in examples for token in example.texts[0].ids[1:]]
    assert learnt == [token for ids in documents for token in (*ids, end)]
    assert sum(example.weight for example in examples) == len(learnt)
    assert examples[0].texts[0].ids[0] == end
    assert all(2 <= len(example.texts[0]) <= window for example in examples)
    assert all(len(example.texts[0]) == window for example in examples[:-1])
    # Each window begins with what the one before it ended with.
    for before, after in itertools.pairwise(examples):
        assert before.texts[0].ids[-1] == after.texts[0].ids[0]


def test_perplexity_falls_and_any_task_can_name_the_adapter(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    notes: list[str] = []
    record = go(tiny, make_run(tiny, tmp_path), note=notes.append)
    metrics = {name: metric.value for name, metric in record.metrics.items()}
    assert metrics["perplexity"] < 0.7 * metrics["perplexity_before"]
    assert metrics["perplexity_fall"] == pytest.approx(
        1 - metrics["perplexity"] / metrics["perplexity_before"]
    )
    assert metrics["bits_per_byte"] < metrics["bits_per_byte_before"]
    assert any("before the training" in words for words in notes)
    version = tiny.store.find(record.version)
    assert version.manifest.task == ""
    assert version.manifest.gates == {"perplexity_fall": 0.0}
    assert version.manifest.missed() == ()
    assert "any task that generates text" in (version.folder / "README.md").read_text()
    model = tiny.model()
    engine = load(model.path, slots=2, slot_tokens=256, model_id=model.name, sha256=model.sha256)
    try:
        engine.load_adapter("domain", version.folder)
        ids = tuple(Vocabulary.from_folder(model.path).encode_text("the card"))
        said = [
            engine.submit(
                Request(prompt=ids, head=Generate(max_tokens=12, adapter=adapter))
            ).result(60)
            for adapter in (None, "domain")
        ]
    finally:
        engine.close()
    assert all(isinstance(each, Generated) for each in said)
    assert said[0].text != said[1].text


def test_a_stopped_run_ends_with_the_same_weights(tiny: SimpleNamespace, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "layers": "upper", "dropout": 0.2}
    whole = go(tiny, make_run(tiny, tmp_path, **options))
    run = make_run(tiny, tmp_path, **options)

    def stop(update: Any) -> None:
        if update.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tiny, run, update=stop)
    resumed = go(tiny, run)
    files = [tiny.store.find(each.version).manifest.files for each in (whole, resumed)]
    assert files[0][LORA_WEIGHTS] == files[1][LORA_WEIGHTS]
    assert whole.metrics == resumed.metrics
    left = {p.name for p in run.folder.iterdir() if not p.name.startswith("events.")}
    assert left <= {"run.json", "log.jsonl", "loss.png", ".lock"}


SHAPE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def shape(tmp_path: Path, **changed: Any) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps({k: v for k, v in (SHAPE | changed).items() if v is not None}))
    return path


def test_from_scratch_comes_a_model_that_the_engine_serves(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    run = make_run(
        tiny, tmp_path, config=shape(tmp_path), method="full", learning_rate=1e-2, epochs=4
    )
    assert "from scratch" in run.record.model
    first = run.record.model_sha256
    record = go(tiny, run)
    assert record.version is None
    assert not (run.folder / "start").exists()
    assert record.metrics["perplexity"].value < 0.2 * record.metrics["perplexity_before"].value
    store = ModelStore(tmp_path / "other")
    made = store.pull(record.trained_model)
    assert made.sha256 != first
    assert made.context == 64
    engine = load(made.path, slots=1, slot_tokens=64, model_id=made.name, sha256=made.sha256)
    try:
        ids = tuple(Vocabulary.from_folder(made.path).encode_text("the card"))
        raw = engine.submit(Request(prompt=ids, head=Generate(max_tokens=8))).result(60)
    finally:
        engine.close()
    assert isinstance(raw, Generated)
    assert " is " in raw.text


def test_random_weights_are_those_of_the_seed(tiny: SimpleNamespace, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    hashes = [
        make_run(
            tiny, tmp_path, config=shape(tmp_path), method="full", seed=seed
        ).record.model_sha256
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model_type": None}, ConfigError, "names no model_type"),
        ({"model_type": "no-such"}, ConfigError, "no-such"),
        ({"model_type": "bert"}, UnsupportedModel, "Bert"),
        ({"vocab_size": 100}, ConfigError, "a vocabulary of 100"),
        ({"num_attention_heads": 5}, ConfigError, "small.json"),
        ({"hidden_size": "wide"}, ConfigError, "small.json"),
    ],
)
def test_a_configuration_of_no_use_leaves_no_run_behind(
    tiny: SimpleNamespace, tmp_path: Path, changed: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        make_run(tiny, tmp_path, config=shape(tmp_path, **changed), method="full")
    assert tiny.table.list() == []


def test_what_cannot_be_pretrained_is_said(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(NotTrainable, match="--method full"):
        make_run(tiny, tmp_path, config=shape(tmp_path))
    with pytest.raises(NotTrainable, match="does not fit a context of 256"):
        go(tiny, make_run(tiny, tmp_path, window=300))
    with pytest.raises(NotTrainable, match="no head"):
        go(tiny, make_run(tiny, tmp_path, method="head"))
