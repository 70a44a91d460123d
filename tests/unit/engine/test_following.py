"""Requests that arrive together compute the beginning that they share once."""

from __future__ import annotations

import pytest
import torch

from gptflow.engine.events import Events
from gptflow.engine.following import Following
from gptflow.engine.prefix import Prefix, PrefixCache
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.sequence import Sequence
from gptflow.engine.slots import KVSlots
from gptflow.heads import Generate
from gptflow.prompt import Prompt
from gptflow.request import Request

PROMPT = Prompt(
    "The quick brown fox jumps over the lazy dog. Answer with one word.\n{{ text }}\nIt:"
)
TEXTS = ("the dog sleeps", "shares fell", "profit rose", "the sun is warm", "Ada", "36")


@pytest.fixture
def burst(make_engine):
    """An engine that begins only when all requests are there, as it does after a cold start."""

    def submit(*, classes=(), disturb=None, **settings):
        engine = make_engine("llama", **settings)
        engine.submit(Request(prompt=(20, 21, 22), head=Generate(max_tokens=1))).result(30)
        with engine._intake._changed:
            futures = [
                engine.submit(
                    Request(
                        prompt=PROMPT.render({"text": text}),
                        head=Generate(max_tokens=6),
                        ignore_eos=True,
                        job_class=job_class,
                    )
                )
                for text, job_class in zip(TEXTS, classes or ["standard"] * 6, strict=True)
            ]
            if disturb is not None:
                disturb(engine, futures)
            return engine, futures

    return submit


def ids_of(tiny, text):
    return tiny.vocabulary.encode(PROMPT.render({"text": text}))


def check(tiny, futures):
    answers = [future.result(30) for future in futures]
    for text, answer in zip(TEXTS, answers, strict=True):
        assert answer.continuations[0].tokens == tiny.greedy("llama", ids_of(tiny, text), 6)
    return [answer.usage.cached for answer in answers]


@pytest.mark.parametrize("rows", [7, 32, 1024])
def test_all_but_the_first_copy_the_template(tiny, burst, rows):
    _, futures = burst(prefill_tokens=rows)
    cached = check(tiny, futures)
    assert cached.count(0) == 1
    assert len(set(cached)) == 2
    assert max(cached) > 20


def before_step(engine, number, act):
    """Do something on the engine's thread, before its step of this number from now."""
    step = engine._step
    left = iter(range(number))

    def stepping():
        if next(left, None) == number - 1:
            act()
        step()

    engine._step = stepping


def test_when_the_first_is_cancelled_one_other_takes_over(tiny, burst):
    def cancel_the_first(engine, futures):
        # What is cancelled is taken out before the step after this one.
        before_step(engine, 3, lambda: gone.append(futures[0].cancel()))

    gone = []
    _, futures = burst(prefill_tokens=7, disturb=cancel_the_first)
    answers = [future.result(30) for future in futures[1:]]
    for text, answer in zip(TEXTS[1:], answers, strict=True):
        assert answer.continuations[0].tokens == tiny.greedy("llama", ids_of(tiny, text), 6)
    assert gone == [True]
    assert [answer.usage.cached > 20 for answer in answers] == [False, True, True, True, True]


def test_one_that_loses_its_slot_in_mid_template_does_not_wait_for_itself(tiny, burst):
    urgent = Request(
        prompt=tiny.prompt_ids(9), head=Generate(max_tokens=2), job_class="interactive"
    )

    def disturb(engine, _):
        before_step(engine, 3, lambda: engine.submit(urgent))

    engine, futures = burst(prefill_tokens=7, slots=1, disturb=disturb)
    assert check(tiny, futures).count(0) == 1
    assert engine.stats()["preemptions"] == 1


CUT = 40


@pytest.fixture
def template():
    """A scheduler, and sequences of other tenants each that share 40 tokens of 50."""
    slots = KVSlots(
        layers=1, heads=1, width=64, slots=4, length=64, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    scheduler = Scheduler(
        slots, PrefixCache(1 << 20), step_tokens=512, prefill_tokens=512, events=Events()
    )

    def draw(tenant, job_class="standard"):
        ids = (*range(CUT), *(1000 + ord(tenant) for _ in range(10)))
        prefix = Prefix(ids[:-1], tenant=tenant, author=CUT)
        sequence = Sequence(ids, prefix=prefix, job_class=job_class)
        sequence.share = (tenant, "")
        scheduler.add(sequence)
        return sequence

    return scheduler, draw


def rows(scheduler):
    return [(chunk.sequence, chunk.start, chunk.stop) for chunk in scheduler.plan()]


def charged(scheduler, tenants="abc"):
    counters = scheduler._waiting._lines[False].queues["standard"]._counters
    return [counters[tenant, ""] for tenant in tenants]


def test_whoever_takes_over_is_charged_for_it(template):
    scheduler, draw = template
    first, second, third = map(draw, "abc")
    assert rows(scheduler) == [(first, 0, 50)]
    assert charged(scheduler) == [50, 10, 10]
    scheduler.remove(first)  # the step has failed
    assert rows(scheduler) == [(second, 0, 50)]
    assert charged(scheduler) == [50, 50, 10]
    scheduler.remove(second)
    assert rows(scheduler) == [(third, 0, 50)]
    assert charged(scheduler) == [50, 50, 50]
    scheduler.remove(third)
    assert len(scheduler._following) == 0


def test_the_most_urgent_takes_over(template):
    scheduler, draw = template
    first = draw("a", "interactive")
    second, third = draw("b", "batch"), draw("c")
    assert rows(scheduler) == [(first, 0, 50)]
    scheduler.remove(first)
    assert rows(scheduler) == [(third, 0, 50)]
    third.done = 50
    scheduler.remove(third)
    assert rows(scheduler) == [(second, 0, 50)]  # the cache did not keep the template


def test_what_the_cache_did_not_keep_is_paid_for(template):
    scheduler, draw = template
    first, second = map(draw, "ab")
    assert rows(scheduler) == [(first, 0, 50)]
    first.done = 50
    scheduler.remove(first)
    assert charged(scheduler, "ab") == [50, 10]
    assert rows(scheduler) == [(second, 0, 50)]
    assert charged(scheduler, "ab") == [50, 50]


def test_a_chain_of_waiting_ends_at_one_that_computes():
    following = Following()
    template, more = tuple(range(CUT)), tuple(range(CUT + 20))
    rows = (*more, 7, 8)
    everybody = [
        Sequence(rows, prefix=Prefix(rows[:-1], tenant=tenant, author=CUT, common=common))
        for tenant, common in (("a", 0), ("b", len(more)), ("b", len(more)))
    ]
    assert [following.start(sequence) for sequence in everybody] == [0, CUT, len(more)]
    first, second, third = everybody
    assert following.waits(second)
    assert following.waits(third)
    following.leave(first)
    assert not following.follows(second)  # which now computes both
    assert following.waits(third)
    second.done = len(template)
    assert following.waits(third)
    following.leave(second)
    assert not following.follows(third)
    following.leave(third)
    assert len(following) == 0
