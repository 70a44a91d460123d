"""Preferences: rows, the loss of DPO, its reference, and what length and repetition do to it."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptflow.adapter_info import LORA_WEIGHTS
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import BadRows, NotTrainable
from gptflow.training.backbone import Backbone
from gptflow.training.data.checks import check
from gptflow.training.data.masking import masked
from gptflow.training.data.reading import preferences
from gptflow.training.data.rows import Preference, Turn
from gptflow.training.data.source import Source
from gptflow.training.data.statistics import describe
from gptflow.training.data.writing import write
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.objective import Start
from gptflow.training.objectives.preferences import (
    REFERENCE,
    PreferenceObjective,
    repetition,
)
from gptflow.training.parts import data_file
from gptflow.training.recording import TaskRecorder
from gptflow.training.runs import Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.trainer import Trainer
from gptflow.training.training import begin, train

QUICK: dict[str, Any] = {
    "rank": 4, "batch": 8, "learning_rate": 3e-3, "epochs": 4, "patience": 99,
}  # fmt: skip


def rows(tiny: SimpleNamespace) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"my {topic} {n}"},
                {"role": "assistant", "content": "is it lost?"},
                {"role": "user", "content": "please help me"},
            ],
            "chosen": f"refund the {topic}",
            "rejected": f"the {topic} is bad",
        }
        for topic in tiny.TOPICS[:6]
        for n in range(5)
    ]


def make_run(tiny: SimpleNamespace, tmp_path: Path, given: Any = None, **settings: Any) -> Run:
    task = tiny.Reply()
    task.check()
    path = tiny.jsonl(tmp_path / "pairs.jsonl", given or rows(tiny))
    files = [data_file(path, "train", "preferences", Source())]
    return begin(tiny.table, task, tiny.model(), files, TrainingSettings.of(**QUICK | settings))


def go(tiny: SimpleNamespace, run: Run, **watch: Any) -> Any:
    task = tiny.Reply()
    task.check()
    return train(run, task, tiny.model(), tiny.store, context=256, watch=Watch(**watch))


def prepared(tiny: SimpleNamespace, tmp_path: Path, **settings: Any) -> SimpleNamespace:
    """An objective and a trainer that has not begun."""
    task = tiny.Reply()
    task.check()
    chosen = TrainingSettings.of(**QUICK | settings)
    vocabulary = Vocabulary.from_folder(tiny.model().path)
    recorder = TaskRecorder(task, vocabulary, context=256)
    objective = PreferenceObjective(recorder, vocabulary, task.head, chosen)
    read = preferences(tiny.jsonl(tmp_path / "pairs.jsonl", rows(tiny))).require()
    examples = objective.examples(read)
    backbone = Backbone.load(tiny.model().path, chosen, model_id="tiny")
    heads = TrainedHeads({}, backbone.width)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        backbone, heads, objective, chosen, folder, train=examples, dev=read, dev_examples=examples
    )
    start = Start(
        folder=folder, backbone=backbone, predict=trainer.predict, train=examples, dev=examples,
        rows=read, measured=examples, note=lambda words: None,
    )  # fmt: skip
    return SimpleNamespace(
        objective=objective, trainer=trainer, start=start, examples=examples, rows=read,
        backbone=backbone, heads=heads,
    )  # fmt: skip


def test_the_loss_begins_at_ln_2(tiny: SimpleNamespace, tmp_path: Path) -> None:
    made = prepared(tiny, tmp_path)
    made.objective.begin(made.start)
    made.trainer._schedule(50)
    loss = made.trainer._update(0, range(len(made.examples)))  # dropout changes nothing yet
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    # Now that LoRA's matrices differ from those it began with, so does the loss.
    assert made.trainer._update(1, range(len(made.examples))) < math.log(2) - 1e-3


def test_the_loss_is_that_of_the_paper(tiny: SimpleNamespace, tmp_path: Path) -> None:
    made = prepared(tiny, tmp_path, beta=0.3, learning_rate=1e-2, warmup=0)
    made.objective.begin(made.start)
    made.trainer._schedule(0)
    made.trainer._update(0, range(8))
    example = made.examples[3]

    def logprob(text: Any) -> float:
        with torch.no_grad():
            logits = made.backbone.logits(made.backbone.hidden([text.ids])[0])
        found = logits.log_softmax(-1)
        return sum(
            float(found[at - 1, text.ids[at]]) for at in range(example.target, len(text.ids))
        )

    now = [logprob(text) for text in example.texts]
    fresh = Backbone.load(tiny.model().path, TrainingSettings(method="head"), model_id="tiny")
    made.backbone, trained = fresh, made.backbone
    before = [logprob(text) for text in example.texts]
    gap = 0.3 * ((now[0] - before[0]) - (now[1] - before[1]))
    hidden = trained.hidden([text.ids for text in example.texts])
    loss = made.objective.loss(trained, made.heads, [example], hidden)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-gap)), abs=1e-4)
    assert abs(gap) > 1e-3


def test_the_reference_is_computed_once_and_is_what_it_would_be_again(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tiny, tmp_path)
    made.objective.begin(made.start)
    file = tmp_path / "run" / REFERENCE
    kept = file.read_bytes()
    assert len(json.loads(kept)["value"]["pairs"]) == len(made.examples)
    again = prepared(tiny, tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is in the file")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "predict", refuse)
        patched.setattr(Backbone, "greedy", refuse)
        again = prepared(tiny, tmp_path)
        again.objective.begin(again.start)
    assert again.objective._reference == made.objective._reference
    for content in (None, b"{", kept.replace(b'"key": "', b'"key": "0')):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        other = prepared(tiny, tmp_path)
        other.objective.begin(other.start)
        assert other.objective._reference == made.objective._reference
        assert file.read_bytes() == kept


@pytest.mark.parametrize("method", ["lora", "full"])
def test_better_answers_become_likelier(tiny: SimpleNamespace, tmp_path: Path, method: str) -> None:
    rate = 3e-3 if method == "lora" else 1e-4
    run = make_run(tiny, tmp_path, method=method, learning_rate=rate)
    record = go(tiny, run)
    found = run.log()
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1]["loss"] < 0.6
    metrics = {name: metric.value for name, metric in record.metrics.items()}
    assert metrics["preference_accuracy"] > 0.9
    assert metrics["margin"] > 0
    assert metrics["preference_logprob"] > -math.log(2)
    assert metrics["chosen_reward"] - metrics["rejected_reward"] == pytest.approx(metrics["margin"])
    assert {"length_ratio", "answer_tokens_before", "answer_tokens", "repetition"} <= set(metrics)
    assert (record.version is None) == (method == "full")
    assert not (run.folder / REFERENCE).exists()


def test_in_bfloat16_what_was_and_what_is_are_measured_alike(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    made = prepared(tiny, tmp_path, precision="bf16")
    made.objective.begin(made.start)
    for exact in (True, False):
        with made.backbone.in_float32() if exact else contextlib.nullcontext():
            outputs = made.trainer.predict(made.examples)
        found = made.objective.figures(made.rows, made.examples, outputs)
        assert found["margin"] == pytest.approx(0, abs=1e-3 if not exact else 1e-6)
        assert found["preference_logprob"] == pytest.approx(-math.log(2), abs=1e-3)


def test_a_stopped_run_ends_with_the_same_weights(tiny: SimpleNamespace, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "layers": "upper", "dropout": 0.2}
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


def test_answers_that_are_better_by_length_alone_are_warned_of(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    given = [
        {
            "prompt": f"my {topic} {n}",
            "chosen": f"please help me with the {topic} and the refund fee",
            "rejected": f"{topic}",
        }
        for topic in tiny.TOPICS[:4]
        for n in range(5)
    ]
    record = go(tiny, make_run(tiny, tmp_path, given, epochs=1))
    assert record.metrics["length_ratio"].value > 3
    assert record.metrics["length_accuracy"].value == 1.0
    assert any("as long as rejected ones" in words for words in record.warnings)
    assert any("by length alone" in words for words in record.warnings)
    card = tiny.store.find(record.version).folder / "README.md"
    assert "**Warning:** chosen answers are" in card.read_text()


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0
    assert repetition([[1] * 13]) == pytest.approx(0.9)
    assert repetition([[1] * 13, [], [1, 2]]) == pytest.approx(0.3)


def test_rows_that_are_none_are_told_by_line(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    talk = {"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    lines: list[tuple[dict[str, Any], str | None]] = [
        (good, None),
        (good | {"rejected": "b "}, "'chosen' and 'rejected' are the same"),
        (good | {"rejected": " "}, "'rejected' is blank"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' is missing"),
        (good | {"chosen": 3}, "'chosen' must be a text"),
        (talk, None),
        (talk | {"messages": []}, "the last of 'messages' is not the user's turn"),
        (talk | {"messages": "a"}, "'messages' must be a list"),
        (talk | {"messages": [{"role": "assistant", "content": "a"}]}, "not the user's turn"),
        (good | {"input": 1}, "'input' must be an object"),
        (good | {"input": {"text": "a"}}, None),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line, _ in lines))
    reading = preferences(path)
    assert len(reading.rows) == 3
    expected = [(n, words) for n, (_, words) in enumerate(lines, 1) if words]
    for problem, (line, words) in zip(reading.problems, expected, strict=True):
        assert problem.origin.line == line
        assert words in problem.message
    with pytest.raises(BadRows, match=r"pairs\.jsonl:2"):
        reading.require()


def test_rows_are_written_masked_and_described(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    talk = [
        {"role": "user", "content": "mail a@example.com"},
        {"role": "assistant", "content": "why"},
        {"role": "user", "content": "so"},
    ]
    lines = [
        {"messages": talk, "chosen": "yes", "rejected": "no, never"},
        {"prompt": "p", "input": {"text": ["b@example.com"]}, "chosen": "y", "rejected": "n"},
        {"prompt": "p", "chosen": "n", "rejected": "y"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = preferences(path).require()
    assert read[0].before == (Turn("user", "mail a@example.com"), Turn("assistant", "why"))
    write(tmp_path / "again.jsonl", read)
    again = preferences(tmp_path / "again.jsonl").require()
    fields = ("prompt", "before", "input", "chosen", "rejected")
    for one, other in zip(read, again, strict=True):
        assert [getattr(one, f) for f in fields] == [getattr(other, f) for f in fields]
    hidden = [masked(row) for row in read]
    assert "@" not in str([[getattr(row, f) for f in fields] for row in hidden])
    assert isinstance(hidden[1], Preference)
    assert hidden[1].input == {"text": ["<email>"]}
    found = describe(read)
    assert found["prompts"] == 2
    assert found["chosen is longer"] == 0.0
    [remark] = [r for r in check(preferences(path)).remarks if "prefers" in r.message]
    assert remark.origin is not None
    assert remark.origin.line == 3


def test_what_cannot_be_trained_is_said(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(NotTrainable, match="no weights of its own"):
        go(tiny, make_run(tiny, tmp_path, method="head"))
    long = [{"prompt": "a", "chosen": "good " * 300, "rejected": "bad"}] * 2
    with pytest.raises(BadRows, match=r"pairs\.jsonl:1: prompt and answer are"):
        go(tiny, make_run(tiny, tmp_path, [*rows(tiny), *long][::-1], dev=0.3))
    task = tiny.Topic()
    task.check()
    files = [data_file(tmp_path / "pairs.jsonl", "train", "preferences", Source())]
    run = begin(tiny.table, task, tiny.model(), files, TrainingSettings())
    with pytest.raises(NotTrainable):
        train(run, task, tiny.model(), tiny.store, context=256)
