"""Who goes next: fair shares, classes with ageing, deadlines, and what choosing costs."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.engine.fairness import FairQueue
from gptflow.engine.sequence import Sequence
from gptflow.engine.waiting import Waiting


def waiting_for(tenant, *, plugin="p", deadline=None, job_class="standard", tokens=10):
    sequence = Sequence([1] * tokens, job_class=job_class)
    sequence.share = (tenant, plugin)
    if deadline is not None:
        sequence.deadline = deadline
    return sequence


def serve(queue):
    """Take the next one out and charge its tokens; returns it."""
    sequence = queue.peek()
    queue.remove(sequence)
    queue.charge(sequence.share, len(sequence.tokens))
    return sequence


def test_a_flood_does_not_hold_up_a_light_tenant():
    queue = FairQueue()
    for _ in range(1000):
        queue.push(waiting_for("flood"))
    for _ in range(10):
        queue.push(waiting_for("light"))
    first = [serve(queue).share[0] for _ in range(20)]
    assert Counter(first) == {"flood": 10, "light": 10}


def test_shares_are_of_tokens_and_not_of_requests():
    queue = FairQueue()
    for _ in range(400):
        queue.push(waiting_for("long", tokens=40))
        queue.push(waiting_for("short", tokens=5))
    tokens = Counter()
    for _ in range(300):
        served = serve(queue)
        tokens[served.share[0]] += len(served.tokens)
    assert abs(tokens["long"] - tokens["short"]) <= 40


def test_plugins_of_one_tenant_share_as_tenants_do():
    queue = FairQueue()
    for _ in range(50):
        queue.push(waiting_for("t", plugin="a"))
    queue.push(waiting_for("t", plugin="b"))
    assert "b" in {serve(queue).share[1] for _ in range(2)}


def test_nobody_saves_up_a_claim_by_being_away():
    queue = FairQueue()
    for _ in range(300):
        queue.push(waiting_for("busy"))
    for _ in range(100):
        serve(queue)
    for _ in range(100):
        queue.push(waiting_for("returning"))
    assert Counter(serve(queue).share[0] for _ in range(40)) == {"busy": 20, "returning": 20}


def test_leaving_and_coming_back_clears_no_debt():
    queue = FairQueue()
    for _ in range(100):
        queue.push(waiting_for("steady"))
    order = []
    for _ in range(20):  # asks again only when it has its answer
        queue.push(waiting_for("one at a time"))
        order += [serve(queue).share[0] for _ in range(2)]
    assert Counter(order) == {"steady": 20, "one at a time": 20}


def test_earliest_deadline_first_then_arrival():
    queue = FairQueue()
    sequences = [waiting_for("t", deadline=d) for d in (None, 30.0, 10.0, None, 20.0)]
    for sequence in sequences:
        queue.push(sequence)
    begun = waiting_for("t")
    queue.push(begun, begun=True)
    order = [serve(queue) for _ in range(6)]
    assert order == [begun, *(sequences[i] for i in (2, 4, 1, 0, 3))]
    assert queue.peek() is None


def test_counters_of_tenants_that_never_return_are_forgotten():
    queue = FairQueue()
    for number in range(20_000):
        queue.push(waiting_for(f"tenant {number}"))
        serve(queue)
    assert len(queue._counters) < 5000
    assert len(queue._queues) <= 1
    assert len(queue._order) <= 1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.booleans())))
def test_what_was_removed_never_comes_up(steps):
    queue = FairQueue()
    model: list[Sequence] = []
    for tenant, number, adds in steps:
        if adds or not model:
            model.append(waiting_for(tenant, deadline=float(number)))
            queue.push(model[-1], begun=number == 0)
        elif number < 5:
            gone = model.pop(number % len(model))
            queue.remove(gone)
            assert gone.ticket is None
        else:
            model.remove(serve(queue))
        assert len(queue) == len(model)
    left = []
    while queue:
        left.append(serve(queue))
    assert sorted(map(id, left)) == sorted(map(id, model))
    assert queue.peek() is None


def test_the_memory_of_removed_sequences_is_given_back():
    queue = FairQueue()
    queue.push(waiting_for("t", deadline=0.0))
    for _ in range(10_000):
        sequence = waiting_for("t")
        queue.push(sequence)
        queue.remove(sequence)
    assert len(queue._queues["t", "p"]._heap) < 100


def admissions(waiting, count):
    order = []
    for _ in range(count):
        turn = waiting.turns()[0]
        waiting.admit(turn.sequence)
        order.append(turn.sequence.job_class)
    return order


def test_every_class_gets_a_tenth_however_much_urgent_work_there_is():
    waiting = Waiting()
    for _ in range(1000):
        for job_class in ("interactive", "standard", "batch"):
            waiting.push(waiting_for("t", job_class=job_class))
    order = admissions(waiting, 400)
    assert Counter(order) == {"interactive": 320, "standard": 40, "batch": 40}
    for job_class in ("standard", "batch"):
        at = [i for i, admitted in enumerate(order) if admitted == job_class]
        assert max(b - a for a, b in itertools.pairwise(at)) <= 10


def test_batch_gets_a_tenth_beside_standard():
    waiting = Waiting()
    for _ in range(100):
        waiting.push(waiting_for("t", job_class="standard"))
        waiting.push(waiting_for("t", job_class="batch"))
    assert Counter(admissions(waiting, 100)) == {"standard": 89, "batch": 11}


def test_patience_begins_when_somebody_waits():
    waiting = Waiting()
    for _ in range(30):
        waiting.push(waiting_for("t", job_class="interactive"))
    admissions(waiting, 15)
    waiting.push(waiting_for("t", job_class="batch"))
    assert admissions(waiting, 9) == ["interactive"] * 8 + ["batch"]


def test_one_that_has_aged_is_passed_by_interactive_ones_if_it_finds_no_room_but_not_for_ever():
    waiting = Waiting()
    for _ in range(100):
        waiting.push(waiting_for("t", job_class="interactive"))
    waiting.push(waiting_for("t", job_class="batch"))
    admissions(waiting, 8)
    for _ in range(56):  # the one that is next finds no room
        turns = waiting.turns()
        assert [turn.sequence.job_class for turn in turns] == ["batch", "interactive"]
        waiting.admit(turns[1].sequence)
    assert [turn.sequence.job_class for turn in waiting.turns()] == ["batch"]


def test_nobody_but_interactive_ones_passes_one_that_finds_no_room():
    waiting = Waiting()
    for _ in range(30):
        waiting.push(waiting_for("t"))
    waiting.push(waiting_for("t", job_class="batch"))
    admissions(waiting, 8)
    assert [turn.sequence.job_class for turn in waiting.turns()] == ["batch"]


class Counted(float):
    """A deadline that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other):
        Counted.comparisons += 1
        return float.__lt__(self, other)

    def __eq__(self, other):
        Counted.comparisons += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


def comparisons_per_request(count, *, cancel):
    dice = random.Random(3)
    waiting = Waiting()
    sequences = [
        waiting_for(
            f"tenant {dice.randrange(8)}",
            deadline=Counted(dice.random()),
            job_class=dice.choice(["interactive", "standard", "batch"]),
        )
        for _ in range(count)
    ]
    Counted.comparisons = 0
    for sequence in sequences:
        waiting.push(sequence)
    if cancel:
        for sequence in sequences[::2]:
            waiting.remove(sequence)
    while turns := waiting.turns():
        waiting.admit(turns[0].sequence)
        waiting.charge(turns[0].sequence, 10)
    assert len(waiting) == 0
    return Counted.comparisons / count


@pytest.mark.parametrize("cancel", [False, True])
def test_choosing_costs_the_logarithm_of_how_many_wait(cancel):
    few = comparisons_per_request(64, cancel=cancel)
    many = comparisons_per_request(4096, cancel=cancel)
    # log2(4096 / 64) is 6 more levels of a heap, up to two comparisons of two kinds in each.
    assert many - few <= 6 * 4
