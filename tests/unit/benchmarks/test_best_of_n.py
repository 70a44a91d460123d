"""The benchmark of choosing among samples: what it asks, counts and keeps."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import click
import pytest

pytest.importorskip("gptflow_code_generation")
from benchmarks.best_of_n import Outcome, inputs, markdown, problems, read_kept, summarise, trials

SETTINGS = {"samples": 10, "temperature": 0.7, "tokens": 192, "visible": None, "model": "m"}


def test_the_figures_are_shares_of_the_problems():
    outcomes = [
        Outcome(11, greedy=True, best=True, tried=10, solved=10),
        Outcome(12, greedy=False, best=True, tried=10, solved=1),
        Outcome(13, greedy=False, best=False, tried=10, solved=0),
        Outcome(14, greedy=False, best=False, tried=10, solved=0),
    ]
    found = summarise(outcomes, SETTINGS)
    assert (found["greedy"], found["best_of_n"], found["ratio"]) == (0.25, 0.5, 2.0)
    assert found["pass@1"] == pytest.approx(11 / 40)
    assert found["pass@10"] == 0.5
    assert "| best of 10 | 0.500 | 2 |" in markdown(found)
    none = summarise(outcomes[2:], SETTINGS)
    assert none["ratio"] is None
    assert "greedy solves none" in markdown(none)


def test_only_the_tests_that_are_visible_are_shown():
    row = {"prompt": "Add.", "test_list": ["assert a(1) == 1", "assert a(2) == 2"]}
    greedy, many = inputs(row, SETTINGS | {"visible": 1})
    assert greedy["tests"] == many["tests"] == ["assert a(1) == 1"]
    assert (greedy["n"], many["n"]) == (1, 10)
    assert inputs(row, SETTINGS)[0]["tests"] == row["test_list"]


def test_what_the_task_has_tried_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def run_trial(backend, code, tests, **_):
        tried.append(code)
        return dataclasses.make_dataclass("Report", ["status"])("failed")

    monkeypatch.setattr("benchmarks.best_of_n.run_trial", run_trial)
    candidates = [
        {"code": code, "parses": parses, "tests": {"status": status, "passed": passed}}
        for code, parses, status, passed in (
            ("all", True, "passed", 2),
            ("some", True, "passed", 1),
            ("some", True, "passed", 1),
            ("wrong", True, "failed", 0),
            ("torn", False, "syntax", 0),
        )
    ]
    assert trials("b", ["assert 1", "assert 2"], candidates) == [True, *[False] * 4]
    assert tried == ["some"]


def test_a_line_that_a_kill_tore_is_asked_again(tmp_path: Path):
    path = tmp_path / "problems.jsonl"
    assert read_kept(path) == {}
    whole = Outcome(11, greedy=True, best=True, tried=10, solved=3)
    path.write_text(json.dumps(dataclasses.asdict(whole)) + '\n{"task_id": 12')
    assert read_kept(path) == {11: whole}
    assert path.read_text().endswith("}\n")


def test_the_problems_are_those_of_the_test_split(tmp_path: Path):
    with pytest.raises(click.UsageError):
        problems(tmp_path)
    folder = tmp_path / "mbpp"
    folder.mkdir()
    with gzip.open(folder / "sanitized-mbpp.json.gz", "wt") as file:
        json.dump([{"task_id": number} for number in (10, 11, 510, 511)], file)
    assert [row["task_id"] for row in problems(tmp_path)] == [11, 510]
