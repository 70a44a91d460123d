"""Where a simple model is as good as what was trained, it answers, and that is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptflow.adapter import Manifest
from gptflow.adapter_info import floor_files
from gptflow.linear_text import LinearText

Invoke = Callable[..., tuple[int, str, str]]

QUICK = ("--rank", "2", "--batch", "16", "--epochs", "0.5")  # which is not enough to learn much


def lost(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path, adapter: str, rows: list[Any]
) -> tuple[str, Path]:
    """What a training that loses to a simple model says, and its adapter's folder."""
    tiny.jsonl(tmp_path / "rows.jsonl", [row for n, row in enumerate(rows) if n % 4])
    tiny.jsonl(tmp_path / "test.jsonl", rows[::4])
    files = ("--data", "rows.jsonl", "--test", "test.jsonl")
    code, _, told = gptflow("train", f"tiny.{adapter}", *files, *QUICK)
    assert code == 0, told
    [made] = (tmp_path / "data" / "adapters" / adapter).glob("2*")
    return told, made


@pytest.fixture
def folder(gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path) -> Path:
    """An adapter whose head lost to naive Bayes."""
    told, made = lost(gptflow, tiny, tmp_path, "topic", tiny.topic_rows(8))
    assert "answers in the adapter's place" in told
    return made


def test_a_floor_that_wins_answers_through_the_engine(gptflow: Invoke, folder: Path) -> None:
    manifest = Manifest.parse((folder / "manifest.json").read_bytes(), name="topic")
    assert set(manifest.floors) == {"label"}
    assert manifest.floors["label"].field == "text"
    metric = manifest.metrics["macro_f1"]
    assert metric.floor is not None
    assert metric.floor > metric.value
    assert manifest.missed() == ()
    assert "answers in its place" in (folder / "README.md").read_text()
    assert "as good" in gptflow("adapters", "show", "topic")[1]

    code, _, err = gptflow("adapters", "promote", "topic")
    assert code == 0, err
    code, out, _ = gptflow("run", "tiny.topic", "is the music number 77 good?", "--local", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["output"]["label"] == "music"
    assert result["provenance"]["adapter"].startswith("topic@")
    [warning] = result["warnings"]
    assert warning.startswith("label: a simple model answers")

    code, out, err = gptflow("eval", "tiny.topic", "--data", "test.jsonl", "--json")
    assert code == 0, err
    found = json.loads(out)["reports"]["label"]
    assert found["metrics"]["macro_f1"]["value"] == pytest.approx(metric.floor, abs=0.02)
    assert found["calibration"]["ece"] == pytest.approx(manifest.metrics["ece"].value, abs=1e-3)
    assert found["calibration"]["temperature"] == manifest.floors["label"].temperature


def test_several_heads_are_answered_each(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [
        {"text": f"{topic} is {mood} {n}", "topic": topic, "mood": mood}
        for topic in tiny.TOPICS[:3]
        for mood in ("good", "bad")
        for n in range(6)
    ]
    given = str(tiny.jsonl(tmp_path / "rows.jsonl", rows))
    labels = ("--label", "topic=topic", "--label", "mood=mood")
    code, _, err = gptflow("train", "tiny.both", "--data", given, *labels, *QUICK)
    assert code == 0, err
    code, out, err = gptflow(
        "eval", "tiny.both", "--data", given, "--adapter", "both", "--json", *labels
    )
    assert code == 0, err
    found = json.loads(out)["reports"]
    assert found["topic"]["metrics"]["accuracy"]["value"] == 1
    assert found["mood"]["metrics"]["accuracy"]["value"] == 1


def test_a_dictionary_that_wins_finds_the_spans(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = tiny.tag_rows()
    told, made = lost(gptflow, tiny, tmp_path, "names", rows)
    assert "dictionary is as good, and answers in the adapter's place" in told
    assert [path.name for path in made.glob("floor-*")] == ["floor-tags.json"]
    manifest = Manifest.parse((made / "manifest.json").read_bytes(), name="names")
    assert manifest.floors["tags"].kind == "dictionary"
    assert manifest.missed() == ()

    code, _, err = gptflow("adapters", "promote", "names")
    assert code == 0, err
    text = rows[0]["text"]
    code, out, err = gptflow("run", "tiny.names", f"He says: {text}", "--local", "--json")
    assert code == 0, err
    result = json.loads(out)
    found = [[s["start"], s["end"], s["label"]] for s in result["output"]["spans"]]
    ahead = len("He says: ")
    assert found == sorted([ahead + s, ahead + e, label] for s, e, label in rows[0]["spans"])
    assert all(0.5 <= span["score"] <= 1 for span in result["output"]["spans"])
    [warning] = result["warnings"]
    assert warning == "tags: a simple model answers (dictionary); no adapter is better"
    assert result["provenance"]["adapter"].startswith("names@")

    code, out, err = gptflow("eval", "tiny.names", "--data", "test.jsonl", "--json")
    assert code == 0, err
    measured = json.loads(out)["reports"]["tags"]["metrics"]["entity_f1"]["value"]
    assert measured == pytest.approx(manifest.metrics["entity_f1"].floor)


def test_a_floor_is_served_only_where_it_is_wanted(
    gptflow: Invoke, folder: Path, tmp_path: Path
) -> None:
    code, out, err = gptflow(
        "train", "tiny.topic", "--data", "rows.jsonl", "--no-serve-floor", "--json", *QUICK
    )
    assert code == 0, err
    version = json.loads(out)["version"].partition("@")[2]
    other = folder.parent / version
    assert not list(other.glob("floor-*"))
    assert gptflow("adapters", "promote", f"topic@{version}")[0] == 13


@pytest.mark.parametrize("file", floor_files("label", "naive_bayes"))
def test_a_floor_that_was_altered_is_refused(gptflow: Invoke, folder: Path, file: str) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = gptflow("adapters", "promote", "topic")
    assert code == 1
    assert "error [GF706]" in err
    assert file in err


def manifest(**fields: Any) -> Manifest:
    names = [file for head in ("a", "b") for file in floor_files(head, "naive_bayes")]
    given: dict[str, Any] = {
        "task": "bed.mood",
        "base": {"id": "base", "sha256": ["a" * 64]},
        "heads": {h: {"kind": "classify", "labels": ["x", "y"]} for h in ("a", "b")},
        "files": dict.fromkeys(["head.safetensors", *names], "b" * 64),
        "primary": "macro_f1",
    }
    return Manifest.parse(json.dumps(given | fields), name="mood")


def test_the_figures_of_who_answers_are_held_against_the_gates() -> None:
    metrics = {
        "a.macro_f1": {"value": 0.5, "floor": 0.8},
        "b.macro_f1": {"value": 0.9, "floor": 0.7},
        "macro_f1": {"value": 0.7, "floor": 0.75},
    }
    gates = {"a.macro_f1": 0.7, "b.macro_f1": 0.7}
    floor = {"kind": "naive_bayes", "field": "text"}
    assert len(manifest(metrics=metrics, gates=gates).missed()) == 3
    assert manifest(metrics=metrics, gates=gates, floors={"a": floor}).missed() == ()
    [told] = manifest(metrics=metrics, gates={"a.macro_f1": 0.85}, floors={"a": floor}).missed()
    assert "0.800" in told
    # One that answers with the head is part of what was measured.
    both = {"a": floor | {"weight": 0.5}}
    assert len(manifest(metrics=metrics, gates=gates, floors=both).missed()) == 3
    lost = metrics | {"b.macro_f1": {"value": 0.6, "floor": 0.7}}
    [told] = manifest(metrics=lost, floors={"a": floor}).missed()
    assert told.startswith("b.macro_f1 is 0.600")


@pytest.mark.parametrize(
    "fields",
    [
        {"floors": {"c": {"kind": "naive_bayes", "field": "text"}}},
        {"floors": {"a": {"kind": "forest", "field": "text"}}},
        {"floors": {"a": {"kind": "dictionary", "field": "text"}}},
        {"floors": {"a": {"kind": "naive_bayes", "field": "text", "weight": 0}}},
        {
            "floors": {"a": {"kind": "naive_bayes", "field": "text"}},
            "files": {"head.safetensors": "b" * 64},
        },
    ],
)
def test_a_floor_needs_a_head_and_files(fields: dict[str, Any]) -> None:
    from gptflow.errors import AdapterCorrupt

    with pytest.raises(AdapterCorrupt):
        manifest(**fields)


def test_terms_that_tell_least_are_left_out_first() -> None:
    texts = ["good good day", "good night", "bad day", "bad bad night"] * 3
    model = LinearText.fit("naive_bayes", texts, ["up", "up", "down", "down"] * 3)
    small = model.trimmed(4)
    assert len(small.vocabulary) == 4
    assert {"good", "bad"} <= set(small.vocabulary)
    assert small.probs(["good"]).argmax() == model.probs(["good"]).argmax()
    assert model.trimmed(10_000) is model
    back = LinearText.parse(*small.files(np.float16), name="x")
    assert back.probs(texts) == pytest.approx(small.probs(texts), abs=0.01)
    assert small.logits("good", ("never", "up"))[0] == -1e4
    logprobs = small.log_probs("good", ("up", "never", "down"))
    assert np.exp([logprobs[0], logprobs[2]]).sum() == pytest.approx(1)
    assert logprobs[1] == -20


def test_a_simple_model_is_cut_down_to_so_many_bytes() -> None:
    texts = [f"word{n} and word{n % 7}" for n in range(200)]
    model = LinearText.fit("naive_bayes", texts, ["up", "down"] * 100)
    whole = sum(map(len, model.files(np.float16)))
    assert whole > 3000
    small = model.rounded(3000)
    assert 2000 < sum(map(len, small.files(np.float16))) <= 3000
    assert len(model.rounded(whole).vocabulary) == len(model.vocabulary)
