"""Writing: what is written reads back as the same rows, and appears whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import InvalidInput
from gptflow.training.data.reading import read
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Origin,
    PlainText,
    Preference,
    ScoredPair,
    TaggedText,
    Turn,
)
from gptflow.training.data.source import Source
from gptflow.training.data.tokens import align
from gptflow.training.data.writing import write

ORIGIN = Origin("a", 1)


def tagged(*words, tags, **more):
    text, tokens = align(words)
    return TaggedText(origin=ORIGIN, text=text, tokens=tokens, tags=tags, **more)


ROWS = {
    "labels": LabelledText(
        origin=ORIGIN,
        text='a, "b"\nc | 中文',
        labels={"label": "x"},
        id="7",
        group="g",
        time=1767312000.0,
        language="zh",
    ),
    "tags": tagged("Apple", "苹", "果", tags=("B-ORG", "B-ORG", "I-ORG"), id="s1"),
    "dialogues": Dialogue(origin=ORIGIN, turns=(Turn("user", "hi"), Turn("assistant", "yes"))),
    "scores": ScoredPair(origin=ORIGIN, query="q", candidate="c", score=0.5),
    "preferences": Preference(origin=ORIGIN, prompt="p", chosen="a", rejected="b"),
    "text": PlainText(origin=ORIGIN, text="one\ntwo"),
}


def without_origin(row):
    return dataclasses.replace(row, origin=ORIGIN)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_kind_of_row_comes_back(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path, [ROWS[kind]] * 2)
    assert [without_origin(row) for row in read(path, kind).require()] == [ROWS[kind]] * 2


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("kind", ["labels", "scores", "preferences", "text"])
def test_flat_rows_come_back_from_tables(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path, [ROWS[kind]])
    assert [without_origin(row) for row in read(path, kind).require()] == [ROWS[kind]]


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_tags_come_back_from_conll_in_every_scheme(tmp_path, scheme):
    rows = [ROWS["tags"], tagged("a", "b", "c", tags=("B-X", "B-X", "I-X"))]
    path = tmp_path / "a.conll"
    write(path, rows, scheme=scheme)
    assert [without_origin(row) for row in read(path, "tags").require()] == rows


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).filter(
                str.strip
            ),
            st.sampled_from(["x", "y z"]),
        ),
        min_size=1,
    ),
    st.sampled_from(["csv", "tsv", "jsonl"]),
)
def test_any_text_comes_back(tmp_path_factory, pairs, suffix):
    path = tmp_path_factory.mktemp("rows") / f"a.{suffix}"
    rows = [LabelledText(origin=ORIGIN, text=text, labels={"label": y}) for text, y in pairs]
    write(path, rows)
    assert [without_origin(row) for row in read(path, "labels").require()] == rows


def test_rows_with_different_heads_share_a_table(tmp_path):
    rows = [
        LabelledText(origin=ORIGIN, text="a", labels={"topic": "t"}),
        LabelledText(origin=ORIGIN, text="b", labels={"mood": "m"}),
    ]
    source = Source(labels={"topic": "topic", "mood": "mood"})
    for name in ("a.csv", "a.parquet"):
        write(tmp_path / name, rows)
        back = read(tmp_path / name, "labels", source).require()
        assert [row.labels for row in back] == [{"topic": "t"}, {"mood": "m"}]


@pytest.mark.parametrize(("kind", "name"), [("tags", "a.csv"), ("labels", "a.conll")])
def test_formats_that_cannot_hold_the_rows_say_which_can(tmp_path, kind, name):
    with pytest.raises(InvalidInput) as caught:
        write(tmp_path / name, [ROWS[kind]])
    assert "JSONL" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write(path, [ROWS["labels"]])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, [ROWS["labels"]] * 2)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]
