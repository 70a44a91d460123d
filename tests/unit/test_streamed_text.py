"""A stream put together: by the reader's place in it, and to one text."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gptflow.queue.following import Follower
from gptflow.streamed_text import StreamedText
from gptflow.transport import Event

_ids = map(str, itertools.count(1))


def delta(text: str, at: int | None = None, sample: int = 0) -> Event:
    return Event(id=next(_ids), kind="delta", text=text, at=at, sample=sample)


def reset() -> Event:
    return Event(id=next(_ids), kind="reset")


def follow(*events: Event, after: str | None = None) -> list[tuple[str, str]]:
    follower = Follower(after)
    told = [one for event in events for one in follower.follow(event)]
    return [(event.kind, event.text) for event in told]


def test_what_arrives_twice_is_given_once() -> None:
    events = delta("one", 0), delta("one two", 0), delta(" two", 3), delta(" three", 7)
    assert follow(*events) == [("delta", "one"), ("delta", " two"), ("delta", " three")]


def test_what_never_arrived_is_told() -> None:
    assert follow(delta("one", 0), delta("four", 10)) == [
        ("delta", "one"),
        ("gap", ""),
        ("delta", "four"),
    ]
    assert follow(delta("two", 3)) == [("gap", ""), ("delta", "two")]
    # The last entry says how long the text is.
    assert follow(delta("one", 0), delta("", 3)) == [("delta", "one")]
    assert follow(delta("one", 0), delta("", 9)) == [("delta", "one"), ("gap", "")]


def test_a_gap_can_be_resumed_before_what_follows_it() -> None:
    first, last = delta("one", 0), delta("four", 10)
    follower = Follower(None)
    told = [one for event in (first, last) for one in follower.follow(event)]
    assert [event.id for event in told] == [first.id, first.id, last.id]


def test_who_resumes_in_the_middle_misses_nothing() -> None:
    assert follow(delta("two", 3), delta(" three", 6), after="5") == [
        ("delta", "two"),
        ("delta", " three"),
    ]


def test_samples_have_texts_of_their_own_and_a_reset_begins_all_of_them_again() -> None:
    events = delta("a", 0), delta("b", 0, sample=1), reset(), delta("a", 0), delta("b", 0, sample=1)
    assert [text for kind, text in follow(*events) if kind == "delta"] == ["a", "b", "a", "b"]


def test_entries_without_a_place_are_taken_as_they_are() -> None:
    assert follow(delta("one"), delta("one")) == [("delta", "one")] * 2


class Reader:
    """Somebody who reads a stream and forgets what he has when he is told to."""

    def __init__(self) -> None:
        self.has = ""
        self.resets = 0
        self.text = StreamedText(self._forget)

    def _forget(self) -> None:
        self.has = ""
        self.resets += 1

    def read(self, *events: Event, output: Any = None) -> Reader:
        for event in events:
            piece = self.text.take(event)
            self.has += piece
        piece = self.text.finish(output)
        self.has += piece
        return self


def test_a_job_that_writes_the_same_again_is_read_as_if_nothing_had_been() -> None:
    reader = Reader().read(delta("on"), delta("e t"), reset(), delta("one"), delta(" two"))
    assert (reader.has, reader.resets) == ("one two", 0)


@pytest.mark.parametrize("fresh", ["other", "o", "on the way", ""])
def test_a_job_that_writes_something_else_makes_the_reader_begin_again(fresh: str) -> None:
    reader = Reader().read(delta("one"), reset(), delta(fresh))
    assert (reader.has, reader.resets) == (fresh, 1)


def test_where_text_was_lost_the_output_has_the_last_word() -> None:
    gap = Event(id="g", kind="gap")
    lost = delta("one"), gap, delta("three")
    reader = Reader().read(*lost, output={"text": "one two three"})
    assert (reader.has, reader.resets) == ("one two three", 1)
    assert Reader().read(delta("one"), gap, output={"text": "one two"}).resets == 0
    # An output without a text cannot help, and one that was not needed is not used.
    assert Reader().read(*lost, output={"label": "x"}).has == "onethree"
    assert Reader().read(delta("one "), output={"text": "one"}).has == "one "


@given(st.lists(st.lists(st.text("ab", max_size=3), max_size=5), min_size=1, max_size=4))
def test_after_any_number_of_runs_the_reader_has_the_last_ones_text(runs: list[list[str]]) -> None:
    events = []
    for run in runs:
        events += [reset(), *map(delta, run)]
    assert Reader().read(*events).has == "".join(runs[-1])
