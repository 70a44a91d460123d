"""`gptflow data`: check, stats, split and convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LINES = [
    {"text": f"{word} number {n} of the day", "label": label, "user": n % 10}
    for n in range(60)
    for word, label in (("gains", "up"), ("losses", "down"))
]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b"text,label\nI like it,up\nI hate it,down\ntoo few\ncaf\xe9,up\nx@example.com,up \n"
        b"I like it,down\n"
    )
    return path


def test_good_data_will_do(gptflow: Any, good: Path) -> None:
    outcome = gptflow("data", "check", str(good), "--near", "1")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "120 rows"
    assert outcome.out.splitlines()[-1] == "This will do."


def test_bad_data_is_told_line_by_line(gptflow: Any, bad: Path) -> None:
    outcome = gptflow("data", "check", str(bad))
    assert outcome.code == 3
    for line, what in ((4, "1 fields"), (5, "0xe9"), (6, "blanks at its ends")):
        assert any(f"bad.csv:{line}: " in each and what in each for each in outcome.out.split("\n"))
    assert "bad.csv:7 repeats" in outcome.out
    assert outcome.out.endswith("This will not do.\n")
    limited = gptflow("data", "check", str(bad), "-n", "1").out
    assert "and 2 more; `--json` has them all" in limited


def test_json_has_every_finding_and_the_same_exit_code(gptflow: Any, bad: Path) -> None:
    outcome = gptflow("data", "check", str(bad), "--json", "-n", "0")
    assert outcome.code == 3
    found = outcome.json
    assert [problem["line"] for problem in found["problems"]] == [4, 5, 6]
    assert found["duplicates"][0]["of"]["line"] == 2
    assert found["ok"] is False


def test_leaks_unseen_labels_and_one_class_have_codes(gptflow: Any, tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("text,label\na,x\nb,x\n")
    test.write_text("text,label\nA,x\nc,z\n")
    outcome = gptflow("data", "check", str(train), "--test", str(test), "--json")
    codes = {remark["code"] for remark in outcome.json["remarks"] if remark["severity"] == "error"}
    assert codes == {"GF807", "GF808", "GF811"}
    assert outcome.code == 3
    text = gptflow("data", "check", str(train), "--test", str(test)).out
    assert "test.csv:2 repeats" in text
    assert "Add rows of the other labels" in text


def test_personal_data_is_counted_and_located_not_shown(gptflow: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nask jo@example.com,x\nring 13812345678,y\n")
    out = gptflow("data", "check", str(path)).out
    assert "Personal data: 1 email, 1 phone (2)" in out
    assert "example" not in out


def test_stats_count(gptflow: Any, good: Path, bad: Path) -> None:
    outcome = gptflow("data", "stats", str(good), "--json")
    assert outcome.code == 0
    assert outcome.json["labels"] == {"label": {"up": 60, "down": 60}}
    partial = gptflow("data", "stats", str(bad))
    assert partial.code == 9
    assert "not a row: " in partial.err
    assert "labels: label: up" in partial.out


def test_split_writes_three_files_and_keeps_groups(
    gptflow: Any, good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    options = ("--method", "grouped", "--group", "user", "--dev", "0.2", "--test", "0.2")
    outcome = gptflow("data", "split", str(good), "--out", str(out), *options, "--json")
    assert outcome.code == 0
    assert sum(part["rows"] for part in outcome.json["parts"]) == 120
    users = [
        {json.loads(line)["group"] for line in (out / f"{part}.jsonl").read_text().splitlines()}
        for part in ("train", "dev", "test")
    ]
    assert sum(map(len, users)) == 10


def test_split_refuses_bad_rows_unless_told_to_leave_them_out(
    gptflow: Any, bad: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    refused = gptflow("data", "split", str(bad), "--out", str(out))
    assert refused.code == 3
    assert "bad.csv:4" in refused.err
    assert not out.exists()
    options = ("--dev", "0", "--test", "0.4", "--skip-bad", "--method", "random")
    outcome = gptflow("data", "split", str(bad), "--out", str(out), *options)
    assert outcome.code == 9
    assert outcome.err.count("not a row: ") == 3
    assert sorted(path.name for path in out.iterdir()) == ["test.csv", "train.csv"]


def test_convert_changes_format_labels_and_masks(gptflow: Any, bad: Path, tmp_path: Path) -> None:
    options = ("--skip-bad", "--strip-labels", "--mask-personal", "--rename", "up=bullish")
    out = tmp_path / "out.jsonl"
    assert gptflow("data", "convert", str(bad), str(out), *options).code == 9
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["label"] for row in rows] == ["bullish", "down", "bullish", "down"]
    assert rows[2]["text"] == "<email>"


def test_convert_changes_the_scheme_of_tags(gptflow: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "a.iob1", tmp_path / "b.conll"
    path.write_text("New I-LOC\nYork I-LOC\nParis B-LOC\n")
    assert gptflow("data", "convert", str(path), str(out), "--to-scheme", "bioes").code == 0
    tags = [line.split("\t")[1] for line in out.read_text().splitlines() if "\t" in line]
    assert tags == ["B-LOC", "E-LOC", "S-LOC"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("check", "none.csv"), 3, "cannot be read"),
        (("check", "good.jsonl", "--near", "0"), 2, "--near 0"),
        (("check", "good.jsonl", "--near", "nan"), 2, "not a number"),
        (("stats", "good.jsonl", "--label", "a", "--label", "b"), 2, "a head each"),
        (("stats", "good.jsonl", "--rename", "x"), 2, "OLD=NEW"),
        (("stats", "good.jsonl", "--delimiter", "ab"), 2, "one character"),
        (("stats", "good.jsonl", "--encoding", "klingon"), 3, "no text encoding"),
        (("split", "good.jsonl", "--out", "o", "--test", "1"), 3, "nothing to train on"),
        (("split", "good.jsonl", "--out", "o", "--method", "temporal"), 3, "--time"),
        (("convert", "good.jsonl", "a.conll"), 3, "CoNLL holds tags"),
        (("convert", "good.jsonl", "a.doc"), 3, "--format"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    gptflow: Any, good: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    outcome = gptflow("data", *arguments)
    assert outcome.code == code
    assert words in outcome.err


def test_the_options_choices_are_the_librarys() -> None:
    from gptflow.cli import data, sources
    from gptflow.training.data import source, splits, tagging

    assert sources.KINDS == source.KINDS
    assert sources.FORMATS == source.FORMATS
    assert sources.SCHEMES == tagging.SCHEMES
    assert data.METHODS == splits.METHODS
