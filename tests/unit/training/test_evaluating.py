"""`gptflow eval`: figures beside their floors, on the engine that workers have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow.training.evaluation.summary import Report

Invoke = Callable[..., tuple[int, str, str]]

QUICK = (
    "--rank", "4", "--batch", "16", "--epochs", "6", "--learning-rate", "3e-3",
    "--head-learning-rate", "1e-2", "--no-serve-floor",
)  # fmt: skip


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training; otherwise a worker may compute in fewer bits, which turns ties."""
    monkeypatch.setenv("GPTFLOW_DTYPE", "float32")


@pytest.fixture
def parts(tiny: SimpleNamespace, tmp_path: Path) -> tuple[str, str]:
    """Rows to train on and rows to measure with."""
    rows = tiny.topic_rows(8)
    train = tiny.jsonl(tmp_path / "train.jsonl", [r for i, r in enumerate(rows) if i % 4])
    test = tiny.jsonl(tmp_path / "test.jsonl", rows[::4])
    return str(train), str(test)


def test_an_adapter_is_measured_as_its_training_measured_it(
    gptflow: Invoke, parts: tuple[str, str], tmp_path: Path
) -> None:
    train, test = parts
    code, out, err = gptflow(
        "train", "tiny.topic", "--data", train, "--test", test, "--json", *QUICK
    )
    assert code == 0, err
    made = json.loads(out)

    code, out, err = gptflow(
        "eval", "tiny.topic", "--data", test, "--adapter", "topic", "--out", "found", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["adapter"] == made["version"]
    assert found["floors_from"] == f"the run {made['id']}"
    report = found["reports"]["label"]
    for figure in ("accuracy", "macro_f1"):
        assert report["metrics"][figure]["value"] == pytest.approx(made["metrics"][figure]["value"])
    best = max(each["macro_f1"]["value"] for each in report["floors"].values())
    assert best == pytest.approx(made["metrics"]["macro_f1"]["floor"])
    assert report["calibration"]["ece"] == pytest.approx(made["metrics"]["ece"]["value"], abs=1e-3)
    assert set(report["floors"]) == {"majority", "naive_bayes", "tfidf_logistic"}
    written = tmp_path / "found"
    assert Report.load(written / "report-label").as_dict() == report
    assert (written / "report-label" / "confusion.png").is_file()
    assert json.loads((written / "evaluation.json").read_bytes())["rows"] == report["rows"]

    code, out, err = gptflow("eval", "tiny.topic", "--data", test, "--adapter", made["version"])
    assert code == 0, err
    assert "naive_bayes" in out
    assert ("The floor wins" in out) == found["floor_wins"]["label"]


def test_the_base_model_and_another_version_are_measured(
    gptflow: Invoke, parts: tuple[str, str]
) -> None:
    train, test = parts
    versions = []
    for epochs in ("12", "0.2"):
        args = (
            "train",
            "tiny.topic",
            "--data",
            train,
            "--dev",
            train,
            "--keep-repeats",
            "--json",
            *QUICK,
            "--epochs",
            epochs,
        )
        code, out, err = gptflow(*args)
        assert code == 0, err
        versions.append(json.loads(out)["version"])
    code, out, err = gptflow(
        "eval", "tiny.topic", "--data", train, "--adapter", versions[0],
        "--compare", versions[1], "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["compared_with"] == versions[1]
    compared = found["comparison"]["label"]
    assert compared["better"], compared
    assert compared["first"] == found["reports"]["label"]["metrics"]["macro_f1"]["value"]
    assert compared["first"] > compared["second"]

    # Nothing is promoted, so a worker would have the base model answer.
    code, served, err = gptflow("eval", "tiny.topic", "--data", test, "--json")
    assert code == 0, err
    assert "the base model answers" in err
    assert "--train" in err
    found = json.loads(served)
    assert found["adapter"] is None
    assert found["reports"]["label"]["floors"] == {}
    assert found["reports"]["label"]["calibration"]["temperature"] == 1
    code, out, err = gptflow(
        "eval", "tiny.topic", "--data", test, "--base", "--train", train, "--dev", train, "--json"
    )
    assert code == 0, err
    base = json.loads(out)
    assert base["reports"]["label"]["metrics"] == found["reports"]["label"]["metrics"]
    assert base["floors_from"] == train
    assert base["floor_wins"] == {"label": True}
    assert base["reports"]["label"]["calibration"]["temperature"] != 1


def test_floors_are_missing_where_the_rows_have_changed(
    gptflow: Invoke, parts: tuple[str, str]
) -> None:
    train, test = parts
    code, _, err = gptflow("train", "tiny.topic", "--data", train, *QUICK, "--epochs", "0.2")
    assert code == 0, err
    with Path(train).open("a") as file:
        file.write(json.dumps({"text": "one more", "label": "card"}) + "\n")
    code, out, err = gptflow("eval", "tiny.topic", "--data", test, "--adapter", "topic", "--json")
    assert code == 0, err
    assert "is not what it was" in err
    assert json.loads(out)["reports"]["label"]["floors"] == {}


def test_gates_that_are_missed_end_it_with_an_error(
    gptflow: Invoke, parts: tuple[str, str], tmp_path: Path
) -> None:
    args = ("eval", "tiny.topic", "--data", parts[1], "--base", "--out", "found")
    code, _, err = gptflow(*args, "--gate", "accuracy=1.01", "--gate", "recall=1")
    assert code == 13
    assert "not ≥ 1.01" in err
    assert "recall was not measured" in err
    assert (tmp_path / "found" / "report-label" / "report.md").is_file()
    assert gptflow(*args, "--gate", "label.accuracy=0", "--gate", "ece=1")[0] == 0


@pytest.mark.parametrize(
    ("task", "rows", "heads", "floor"),
    [
        ("tiny.names", "tag_rows", ("tags",), "dictionary"),
        ("tiny.fit", "score_rows", ("score",), "bm25"),
    ],
)
def test_tags_and_scores_are_measured(
    gptflow: Invoke,
    tiny: SimpleNamespace,
    tmp_path: Path,
    task: str,
    rows: str,
    heads: tuple[str, ...],
    floor: str,
) -> None:
    given = str(tiny.jsonl(tmp_path / "rows.jsonl", getattr(tiny, rows)()))
    code, out, err = gptflow(
        "train",
        task,
        "--data",
        given,
        "--test",
        given,
        "--keep-repeats",
        "--json",
        *QUICK,
        "--epochs",
        "1",
    )
    assert code == 0, err
    made = json.loads(out)
    code, out, err = gptflow("eval", task, "--data", given, "--adapter", made["adapter"], "--json")
    assert code == 0, err
    found = json.loads(out)
    assert tuple(found["reports"]) == heads
    [report] = found["reports"].values()
    assert list(report["floors"]) == [floor]
    for figure, measured in report["metrics"].items():
        assert measured["value"] == pytest.approx(made["metrics"][figure]["value"]), figure


def test_several_heads_are_measured_each(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"{t} {m} {n}", "topic": t, "mood": m}
        for t in tiny.TOPICS[:3]
        for m in ("good", "bad")
        for n in range(4)
    ]
    given = str(tiny.jsonl(tmp_path / "rows.jsonl", rows))
    labels = ("--label", "topic=topic", "--label", "mood=mood")
    code, out, err = gptflow(
        "eval", "tiny.both", "--data", given, "--train", given, "--base", "--json", *labels
    )
    assert code == 0, err
    found = json.loads(out)
    assert set(found["reports"]) == {"topic", "mood"}
    assert found["reports"]["mood"]["rows"] == 24


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("tiny.topic",), 2, "--data"),
        (("tiny.topik", "--data", "ROWS"), 4, "Did you mean 'tiny.topic'"),
        (("tiny.topic", "--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("tiny.topic", "--data", "ROWS", "--base", "--adapter", "topic"), 2, "--base"),
        (("tiny.topic", "--data", "ROWS", "--adapter", "mood"), 13, "not 'mood'"),
        (("tiny.topic", "--data", "ROWS", "--adapter", "topic@5f"), 4, "topic@5f"),
        (("tiny.topic", "--data", "ROWS", "--base", "--rename", "card=kard"), 3, "kard"),
        (("tiny.names", "--data", "ROWS", "--base"), 13, "not measured with labels"),
        (("tiny.reply", "--data", "TALK", "--base"), 13, "perplexity"),
    ],
)
def test_what_is_wrong_is_told(
    gptflow: Invoke,
    parts: tuple[str, str],
    tiny: SimpleNamespace,
    tmp_path: Path,
    args: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    talk = tiny.jsonl(tmp_path / "talk.jsonl", tiny.dialogue_rows())
    known = {"ROWS": parts[1], "TALK": str(talk)}
    found, _, err = gptflow("eval", *(known.get(each, each) for each in args))
    assert found == code, err
    assert told in err
