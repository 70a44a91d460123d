"""Cancelling at every stage, and what is left of what was cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, wait

import pytest

from gptflow.heads import Generate
from gptflow.request import Request


@pytest.mark.parametrize("stage", ["inbox", "waiting", "prefilling", "decoding"])
@pytest.mark.parametrize("through", ["engine", "future"])
def test_cancel_at_every_stage(tiny, make_engine, stage, through):
    engine = make_engine(slots=1, prefill_tokens=8)
    begun = threading.Event()
    request = tiny.ask(tiny.prompt_ids(100), 150, on_delta=lambda _: begun.set())
    if stage == "waiting":
        first = engine.submit(tiny.ask(tiny.prompt_ids(5), 150, on_delta=lambda _: begun.set()))
        assert begun.wait(30)
    pause = None if stage == "decoding" else tiny.Pause(engine)
    if stage == "inbox":
        engine.submit(tiny.ask(tiny.prompt_ids(5), 1))
        assert pause.reached.wait(30)
    future = engine.submit(request)
    if stage == "decoding":
        assert begun.wait(30)
    elif stage == "prefilling":
        assert pause.reached.wait(30)
        pause.release()  # one chunk of thirteen, or some more
    assert engine.cancel(request.id) if through == "engine" else future.cancel()
    if pause is not None:
        pause.release()
    with pytest.raises(CancelledError):
        future.result(0)
    assert wait([future], 30).done
    assert engine.cancel(request.id) is False
    if stage == "waiting":
        first.cancel()
    assert engine.submit(tiny.ask(tiny.prompt_ids(7), 2)).result(30)
    assert engine.stats()["slots_used"] == 0


def test_cancelling_one_of_many_samples_frees_all(tiny, make_engine):
    engine = make_engine(slots=3)
    begun = threading.Event()
    head = Generate(max_tokens=150, temperature=1.0, n=8)
    future = engine.submit(
        Request(
            prompt=tiny.prompt_ids(9), head=head, ignore_eos=True, on_delta=lambda _: begun.set()
        )
    )
    assert begun.wait(30)
    assert future.cancel()
    engine.submit(tiny.ask(tiny.prompt_ids(7), 2)).result(30)
    stats = engine.stats()
    assert (stats["slots_used"], stats["waiting"], stats["running"]) == (0, 0, 0)


def test_cancelled_between_its_samples(tiny, make_engine):
    engine = make_engine(slots=1)
    texts = []
    request = Request(
        prompt=tiny.prompt_ids(9),
        head=Generate(max_tokens=20, temperature=1.0, n=3),
        ignore_eos=True,
        on_delta=lambda delta: texts.append(delta.sample) or stop(delta),
    )

    def stop(delta):
        if delta.sample == 1:
            engine.cancel(request.id)

    future = engine.submit(request)
    with pytest.raises(CancelledError):
        future.result(30)
    engine.submit(tiny.ask(tiny.prompt_ids(7), 2)).result(30)
    assert (engine.stats()["slots_used"], engine.stats()["waiting"]) == (0, 0)
    assert engine._sharing.nbytes == 0
