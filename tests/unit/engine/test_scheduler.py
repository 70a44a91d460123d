"""Planning a step: who is let in, who has to go, and what the memory allows."""

from __future__ import annotations

import sys

import pytest
import torch

from gptflow.engine.events import Events
from gptflow.engine.prefix import PrefixCache
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.sequence import Decoding, Sampling, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.errors import InputTooLong

linux = pytest.mark.skipif(sys.platform != "linux", reason="a budget needs Linux")


def make(slots=2, length=256, budget=None, step_tokens=64, prefill_tokens=128, beside=0):
    cache = KVSlots(
        layers=1, heads=1, width=64, slots=slots, length=length, dtype=torch.float32,
        device=torch.device("cpu"), budget=budget, beside=beside,
    )  # fmt: skip
    return Scheduler(
        cache,
        PrefixCache(0),
        step_tokens=step_tokens,
        prefill_tokens=prefill_tokens,
        events=Events(),
    )


def decoding(tokens=10, new=100, job_class="standard", tenant=""):
    sequence = Decoding(
        [1] * tokens, sampling=Sampling(), limit=new, end_ids=frozenset(), job_class=job_class
    )
    sequence.share = (tenant, "")
    return sequence


def step(scheduler):
    """Run a step as the engine would, every draw being token 1."""
    chunks = scheduler.plan()
    for chunk in chunks:
        chunk.sequence.done = chunk.stop
        if isinstance(chunk.sequence, Decoding) and chunk.sequence.remaining == 0:
            chunk.sequence.accept(1, 0.0)
            if chunk.sequence.ended:
                scheduler.remove(chunk.sequence)
    return chunks


def rows(chunks):
    return [(chunk.sequence, chunk.start, chunk.stop) for chunk in chunks]


def test_rows_that_decode_come_first_and_prompts_fill_the_budget():
    scheduler = make(slots=3)
    first, second = decoding(10), decoding(100)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    assert rows(step(scheduler)) == [(first, 10, 11), (second, 0, 63)]
    assert rows(step(scheduler)) == [(first, 11, 12), (second, 63, 100)]


def test_an_interactive_prompt_goes_before_one_that_has_begun_but_does_not_stop_it():
    scheduler = make(slots=2, length=1024)
    slow, urgent = Sequence([1] * 800, job_class="batch"), decoding(600, job_class="interactive")
    scheduler.add(slow)
    assert rows(step(scheduler)) == [(slow, 0, 128)]
    scheduler.add(urgent)
    assert rows(step(scheduler)) == [(urgent, 0, 112), (slow, 128, 144)]


def test_the_least_urgent_and_least_advanced_has_to_go():
    scheduler = make(slots=3)
    standard, batch, newer = decoding(), decoding(job_class="batch"), decoding(5, job_class="batch")
    for sequence in (standard, batch, newer):
        scheduler.add(sequence)
        step(scheduler)
    drawn = list(newer.output)
    urgent = decoding(job_class="interactive")
    scheduler.add(urgent)
    step(scheduler)
    assert set(scheduler.running) == {standard, batch, urgent}
    assert newer.preempted == 1
    assert newer.done == 0
    assert newer.output == drawn
    assert scheduler.waiting_by_class == {"interactive": 0, "standard": 0, "batch": 1}
    scheduler.remove(urgent)
    later = decoding(job_class="batch")
    scheduler.add(later)
    assert rows(step(scheduler))[-1] == (newer, 0, len(newer.tokens) - 1)  # before later ones


CLASSES = ("interactive", "standard", "batch")


@pytest.mark.parametrize("running", CLASSES)
@pytest.mark.parametrize("arriving", CLASSES)
def test_whoever_is_less_urgent_has_to_go(running, arriving):
    scheduler = make(slots=1)
    holder, comer = decoding(job_class=running), decoding(job_class=arriving)
    scheduler.add(holder)
    step(scheduler)
    scheduler.add(comer)
    chunks = rows(step(scheduler))
    if CLASSES.index(arriving) < CLASSES.index(running):
        assert chunks == [(comer, 0, 10)]
        assert scheduler.preemptions == 1
    else:
        assert chunks == [(holder, 10, 11)]
        assert scheduler.preemptions == 0


@pytest.mark.parametrize("beside", [0, 2])
def test_prompts_alone_need_no_slot_of_those_that_decode(beside):
    scheduler = make(slots=1, beside=beside)
    holder, other = decoding(), decoding()
    for sequence in (holder, other):
        scheduler.add(sequence)
        step(scheduler)
    prompts = [Sequence([1] * 20), Sequence([1] * 20), Sequence([1] * 20)]
    for prompt in prompts:
        scheduler.add(prompt)
    chunks = step(scheduler)
    assert [chunk.sequence for chunk in chunks] == [holder, *prompts[:beside]]
    assert [chunk.slot for chunk in chunks] == [0, 1, 2][: 1 + beside]
    assert scheduler.waiting == 4 - beside
    if beside:
        assert not chunks[1].is_decode
        for prompt in prompts[:2]:
            scheduler.remove(prompt)
        assert step(scheduler)[1].sequence is prompts[2]


def test_who_has_to_go_has_what_lacks():
    scheduler = make(slots=1, beside=1)
    batches = decoding(job_class="batch"), Sequence([1] * 200, job_class="batch")
    for sequence in batches:
        scheduler.add(sequence)
        step(scheduler)
    urgent = decoding(job_class="interactive")
    scheduler.add(urgent)
    step(scheduler)
    assert (batches[0].slot, batches[1].slot, urgent.slot) == (None, 1, 0)


@linux
def test_an_aged_one_that_does_not_fit_does_not_hide_interactive_ones():
    scheduler = make(slots=8, length=256, budget=256)
    scheduler.add(decoding(10, 118, job_class="interactive"))
    step(scheduler)
    for _ in range(8):
        scheduler.add(decoding(4, 1, job_class="interactive"))
    large = decoding(10, 240, job_class="batch")
    scheduler.add(large)
    for _ in range(4):
        step(scheduler)
    urgent = decoding(10, 30, job_class="interactive")
    scheduler.add(urgent)
    step(scheduler)
    assert urgent.slot is not None
    assert large.slot is None


def test_the_same_sequence_has_to_go_twice_at_most():
    scheduler = make(slots=1)
    victim = decoding(job_class="batch")
    scheduler.add(victim)
    for expected in (1, 2, 2):
        while victim.slot is None:
            step(scheduler)
        urgent = decoding(new=2, job_class="interactive")
        scheduler.add(urgent)
        step(scheduler)
        assert victim.preempted == expected
    assert urgent.slot is None
    assert scheduler.preemptions == 2


def test_a_share_pays_once_for_what_is_computed_twice():
    scheduler = make(slots=1)
    victim = decoding(10, job_class="standard", tenant="v")
    scheduler.add(victim)
    for _ in range(4):
        step(scheduler)
    scheduler.add(decoding(new=1, job_class="interactive"))
    step(scheduler)
    counters = scheduler._waiting._lines[True].queues["standard"]._counters
    assert counters["v", ""] == 10 + 2 * 3
    step(scheduler)
    assert counters["v", ""] == 10 + 2 * 4


def test_tenants_share_the_tokens_while_one_floods():
    scheduler = make(slots=4)
    drawn = {"flood": 0, "light": 0}
    everybody = [decoding(20, 10, tenant="flood") for _ in range(500)]
    everybody += [decoding(5, 25, tenant="light") for _ in range(100)]
    for sequence in everybody:
        scheduler.add(sequence)
    for _ in range(300):
        for chunk in step(scheduler):
            weight = 2 if chunk.start >= chunk.sequence.trunk else 1
            drawn[chunk.sequence.share[0]] += weight * len(chunk)
    assert drawn["flood"] == pytest.approx(drawn["light"], rel=0.05)


@linux
def test_the_sum_of_the_worst_cases_stays_within_the_budget():
    scheduler = make(slots=8, length=256, budget=300, prefill_tokens=512)
    for new in (90, 90, 90, 90, 240, 10):
        scheduler.add(decoding(10, new))
    most = 0
    order = []
    while scheduler.busy:
        order += [c.sequence.limit for c in scheduler.plan() if c.start == 0]
        assert sum(s.most_tokens for s in scheduler.running) <= 300
        most = max(most, len(scheduler.running))
        for chunk in [*rows_of(scheduler)]:
            chunk.done += chunk.remaining
            chunk.accept(1, 0.0)
            if chunk.ended:
                scheduler.remove(chunk)
    assert most == 2  # 100 tokens each, in pages of 16
    assert order == [90, 90, 90, 90, 240, 10]  # the long one is not overtaken


def rows_of(scheduler):
    return list(scheduler.running)


@linux
def test_several_have_to_go_where_one_does_not_free_enough():
    scheduler = make(slots=8, length=256, budget=256)
    small = [decoding(10, 38, job_class="batch") for _ in range(5)]
    for sequence in small:
        scheduler.add(sequence)
        step(scheduler)
    scheduler.add(decoding(10, 118, job_class="interactive"))
    step(scheduler)
    assert sum(sequence.slot is None for sequence in small) == 3
    assert scheduler.preemptions == 3


@linux
def test_nobody_has_to_go_in_vain():
    scheduler = make(slots=2, length=256, budget=256)
    scheduler.add(decoding(10, 118, job_class="interactive"))
    scheduler.add(decoding(10, 38, job_class="batch"))
    step(scheduler)
    scheduler.add(decoding(10, 240, job_class="interactive"))
    step(scheduler)
    assert scheduler.preemptions == 0


@linux
def test_what_can_never_fit_is_refused():
    scheduler = make(slots=2, length=256, budget=128)
    with pytest.raises(InputTooLong, match="128"):
        scheduler.add(decoding(10, 119))
    scheduler.add(decoding(10, 118))
    assert step(scheduler)


def test_who_takes_a_slot_finds_nothing_in_it_that_is_not_a_number():
    # torch adds a mask to the scores and multiplies by what comes out: NaN stays NaN.
    scheduler = make(slots=1)
    victim = Sequence([1] * 200, job_class="batch")
    scheduler.add(victim)
    step(scheduler)
    scheduler._slots.values[0][victim.slot, :, :100].fill_(torch.nan)
    urgent = decoding(job_class="interactive")
    scheduler.add(urgent)
    step(scheduler)
    assert victim.slot is None
    assert urgent.slot == 0
    assert scheduler._slots.values[0].isfinite().all()
