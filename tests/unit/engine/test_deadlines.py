"""Deadlines: when they pass, and what is no time."""

from __future__ import annotations

import threading
import time

import pytest

from gptflow.errors import (
    EngineError,
    InvalidInput,
    JobTimeout,
)
from gptflow.heads import Embed
from gptflow.request import Request


def test_deadlines(tiny, make_engine):
    engine = make_engine(slots=1)
    begun = threading.Event()
    late = engine.submit(tiny.ask(tiny.prompt_ids(5), deadline=time.time() - 1))
    assert isinstance(late.exception(30), JobTimeout)
    running = engine.submit(
        tiny.ask(
            tiny.prompt_ids(5), 250, deadline=time.time() + 1000, on_delta=lambda _: begun.set()
        )
    )
    assert begun.wait(30)
    heap = engine._deadlines._heap
    heap[0] = (0.0, *heap[0][1:])
    assert isinstance(running.exception(30), JobTimeout)
    assert engine.submit(tiny.ask(tiny.prompt_ids(5), 2)).result(30)


@pytest.mark.parametrize(
    ("deadline", "error"),
    [
        (float("nan"), InvalidInput),
        ("tomorrow", EngineError),
        (float("-inf"), JobTimeout),
        (float("inf"), type(None)),
        (2**70, type(None)),
    ],
)
def test_deadlines_that_are_no_time(tiny, make_engine, deadline, error):
    engine = make_engine()
    future = engine.submit(tiny.ask(tiny.prompt_ids(5), 2, deadline=deadline))
    assert isinstance(future.exception(30), error)
    assert engine.submit(tiny.ask(tiny.prompt_ids(5), 2, deadline=time.time() + 1e9)).result(30)


def test_a_deadline_passes_for_one_that_waits(tiny, make_engine):
    engine = make_engine(slots=1)
    begun = threading.Event()
    long = engine.submit(tiny.ask(tiny.prompt_ids(5), 250, on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    late = engine.submit(tiny.ask(tiny.prompt_ids(6), 5, deadline=time.time() + 0.01))
    assert isinstance(late.exception(30), JobTimeout)
    assert not long.done()
    long.cancel()


def test_answered_requests_do_not_stay_until_their_deadline(tiny, make_engine):
    engine = make_engine()
    for number in range(300):
        head = Embed()
        request = Request(prompt=(5, 6), head=head, deadline=time.time() + 1e6 + number)
        engine.submit(request).result(30)
    assert len(engine._deadlines) < 150
