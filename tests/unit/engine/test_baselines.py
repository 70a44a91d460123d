"""Baselines: content-free scores that several requests wait for."""

from __future__ import annotations

from concurrent.futures import wait

from gptflow.heads import Choose
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request


def labelled(blank, **more):
    return Request(
        prompt=RenderedPrompt.plain("The dog"),
        head=Choose(labels=("good", "bad")),
        baseline=RenderedPrompt.plain(blank),
        **more,
    )


def test_cancelled_while_its_baseline_is_pending(tiny, make_engine):
    engine = make_engine(slots=1, prefill_slots=0)
    arriving = tiny.Pause(engine)
    first = engine.submit(tiny.ask(tiny.prompt_ids(5), 250))
    assert arriving.reached.wait(30)
    alone = engine.submit(labelled("nothing"))
    shared = [engine.submit(labelled("nothing at all")) for _ in range(2)]
    waiting = tiny.Pause(engine)
    arriving.release()
    assert waiting.reached.wait(30)
    assert engine.stats()["baselines"] == 2
    assert engine.stats()["waiting"] == 5  # three prompts and two baselines
    assert alone.cancel()
    assert shared[0].cancel()
    assert first.cancel()
    waiting.release()
    assert shared[1].result(30).label in ("good", "bad")
    assert engine.stats()["baselines"] == 1  # nobody waited for the other one any more
    assert engine.submit(labelled("nothing")).result(30)
    assert engine.stats()["waiting"] == engine.stats()["slots_used"] == 0


def test_a_baseline_waits_in_the_class_of_the_most_urgent_that_needs_it(tiny, make_engine):
    engine = make_engine(slots=1, prefill_slots=0)
    pause = tiny.Pause(engine)
    holder = engine.submit(tiny.ask(tiny.prompt_ids(5), 60, job_class="interactive"))
    assert pause.reached.wait(30)
    order = []
    futures = [
        engine.submit(labelled("N/A", job_class="batch")),
        engine.submit(tiny.ask(tiny.prompt_ids(6), 2)),
        engine.submit(labelled("N/A", job_class="interactive")),
    ]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, n=number: order.append(n))
    pause.release()
    wait([holder, *futures], 30)
    assert order == [2, 1, 0]
    assert engine.stats()["preemptions"] == 0
