"""Rows that are kept for the run that goes on from here."""

from __future__ import annotations

import dataclasses
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gptflow.errors import (
    UnreadableFile,
)
from gptflow.training import reservoir
from gptflow.training.batches import epoch_batches, mixed_batches
from gptflow.training.data.rows import Dialogue, LabelledText, Origin, ScoredPair, TaggedText, Turn
from gptflow.training.data.rows import Token as DataToken
from gptflow.training.example import Example, Text
from gptflow.training.reservoir import Kept

HERE = Origin("rows.jsonl", 1)


def label(text: str, label: str) -> LabelledText:
    return LabelledText(origin=HERE, text=text, labels={"label": label})


def kept(row: Any, part: Any = "train", stage: str = "one") -> Kept:
    return Kept(row, part, stage)


def test_a_reservoir_is_balanced_over_classes_and_depends_on_the_rows_alone() -> None:
    rows = [kept(label(f"text {n}", "common")) for n in range(300)]
    rows += [kept(label(f"text {n}", "rare")) for n in range(300, 304)]
    rows += [kept(label(f"text {n}", "some")) for n in range(400, 440)]
    found = reservoir.sample(rows, 40)
    counts = [sum(k.row.classes == (name,) for k in found) for name in ("common", "rare", "some")]
    assert counts == [18, 4, 18]
    assert reservoir.sample(reversed(rows), 40) == found
    # A sample of what earlier stages kept, and new rows, is the sample of all rows.
    first = reservoir.sample(rows[:200], 40)
    assert reservoir.sample([*first, *rows[200:]], 40) == found
    assert reservoir.sample(rows, 10_000) != found
    assert len(reservoir.sample(rows * 2, 10_000)) == len(rows)
    assert reservoir.sample([], 10) == []


def test_by_default_some_of_each_class_are_kept_however_many_there_are() -> None:
    few = [kept(label(f"text {n}", f"label {n % 3}")) for n in range(3000)]
    assert len(reservoir.sample(few)) == reservoir.ROWS
    many = [kept(label(f"text {n}", f"label {n % 40}")) for n in range(3000)]
    counts = Counter(each.row.classes for each in reservoir.sample(many))
    assert set(counts.values()) == {reservoir.OF_A_CLASS}
    assert len(counts) == 40
    # Classes that come later do not cost those before them their rows.
    first = reservoir.sample(many[:1500])
    assert reservoir.sample([*first, *many[1500:]]) == reservoir.sample(many)


def test_development_rows_are_kept_apart_and_candidates_together() -> None:
    rows = [
        kept(label(f"text {n}", "ab"[n % 2]), "dev" if n % 4 == 0 else "train") for n in range(80)
    ]
    found = reservoir.sample(rows, 20)
    assert [sum(k.part == part for k in found) for part in ("train", "dev")] == [20, 5]
    pairs = [
        kept(
            ScoredPair(origin=HERE, query=f"q{n // 3}", candidate=f"c{n}", score=float(n % 3 == 0))
        )
        for n in range(60)
    ]
    queries = [k.row.query for k in reservoir.sample(pairs, 10)]
    assert {queries.count(query) for query in queries} == {3}


def test_a_reservoir_is_read_as_it_was_written_and_is_its_owners_alone(tmp_path: Path) -> None:
    words = (DataToken(0, 3), DataToken(4, 9))
    rows = [
        kept(
            LabelledText(
                origin=HERE, text="我的卡 \u2028x", labels={"text": "a", "id": "b"}, group="g"
            )
        ),
        kept(
            TaggedText(
                origin=HERE, text="Ada lives", tokens=words, tags=("B-name", "O"), id="7"
            ),
            "dev",
        ),
        kept(TaggedText(origin=HERE, text="Ada lives", tokens=words, tags=("O", "B-x"))),
        kept(Dialogue(origin=HERE, turns=(Turn("user", "hi"), Turn("assistant", "hello")))),
        kept(ScoredPair(origin=HERE, query="q", candidate="c", score=0.5), stage="two"),
    ]  # fmt: skip
    reservoir.save(tmp_path, rows)
    path = tmp_path / reservoir.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = reservoir.load(tmp_path)
    assert found is not None
    here = [dataclasses.replace(k, row=dataclasses.replace(k.row, origin=HERE)) for k in found]
    assert here == rows
    assert reservoir.load(tmp_path / "nowhere") is None
    path.write_text('{"kind": "labels", "part": "train"}\n')
    with pytest.raises(UnreadableFile, match="damaged"):
        reservoir.load(tmp_path)


def test_each_batch_has_its_share_of_old_examples() -> None:
    examples = [Example((Text((1,) * (1 + n % 7)),), None, 1.0, n) for n in range(100)]
    for share, batch, old, wanted in ((0.1, 32, 20, 3), (0.3, 10, 20, 3), (0.01, 8, 1, 1)):
        batches = mixed_batches(examples, old, batch, share, seed=0, epoch=0)
        new = 100 - old
        assert sorted(i for each in batches for i in each if i < new) == list(range(new))
        full = [each for each in batches if len(each) == batch]
        assert full
        assert all(sum(i >= new for i in each) == wanted for each in full)
        assert all(any(i >= new for i in each) for each in batches)
    assert batches != mixed_batches(examples, 1, 8, 0.01, seed=0, epoch=1)
    assert mixed_batches(examples, 0, 8, 0.5, seed=3, epoch=1) == epoch_batches(
        examples, 8, seed=3, epoch=1
    )
