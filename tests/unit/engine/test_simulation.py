"""The scheduler under random loads without a model: somebody gets on in every step."""

from __future__ import annotations

import random

import pytest
import torch

from gptflow.engine.events import Events
from gptflow.engine.prefix import Prefix, PrefixCache
from gptflow.engine.scheduler import Scheduler
from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Decoding, Sampling, Sequence
from gptflow.engine.slots import KVSlots

CLASSES = ("interactive", "standard", "batch")
LENGTH = 200


class Load:
    """Sequences that share beginnings, come at random and now and then are cancelled."""

    def __init__(self, seed):
        self.dice = dice = random.Random(seed)
        self.slots = KVSlots(
            layers=1, heads=1, width=64, slots=dice.randint(1, 5), length=LENGTH,
            dtype=torch.float32, device=torch.device("cpu"),
            budget=dice.choice([200, 300, 500, 1000]), beside=dice.choice([0, 1, 4]),
        )  # fmt: skip
        token = self.slots.bytes_per_token
        self.prefixes = PrefixCache(token * dice.choice([0, 30, 200, 2000]))
        self.scheduler = Scheduler(
            self.slots,
            self.prefixes,
            step_tokens=dice.choice([4, 24, 64]),
            prefill_tokens=dice.choice([1, 8, 40, 128]),
            events=Events(),
        )
        self.templates = [
            [1000 * number + token for token in range(dice.randint(10, 60))] for number in range(2)
        ]
        self.alive = []
        self.todo = dice.randint(5, 40)

    def run(self):
        while self.alive or self.todo:
            self.arrive()
            if self.alive and self.dice.random() < 0.03:
                self.scheduler.remove(self.alive.pop(self.dice.randrange(len(self.alive))))
            chunks = self.scheduler.plan()
            assert bool(chunks) == self.scheduler.busy, "everybody waits for somebody"
            self.compute(chunks)
        assert not self.scheduler.busy
        assert self.slots.free == self.slots.slots
        assert self.slots.free_beside == self.slots.beside
        assert self.slots.reserved == 0
        assert len(self.scheduler._following) == 0

    def arrive(self):
        if self.todo and self.dice.random() < 0.5:
            self.todo -= 1
            sequence = self.draw()
            sequence.share = (self.dice.choice("xyz"), "p")
            self.scheduler.add(sequence)
            self.alive.append(sequence)

    def draw(self):
        dice = self.dice
        template = dice.choice(self.templates)
        ids = template + [dice.randrange(9) for _ in range(dice.randint(2, 40))]
        prefix = None
        if dice.random() < 0.8:
            prefix = Prefix(
                tuple(ids[:-1]), tenant=dice.choice("ab"), author=len(template),
                common=dice.choice([0, min(len(template) + 8, len(ids) - 1)]),
            )  # fmt: skip
        more = {"job_class": dice.choice(CLASSES), "prefix": prefix}
        kind = dice.random()
        if kind < 0.6:
            limit = dice.randint(1, 30)
            return Decoding(ids, sampling=Sampling(), limit=limit, end_ids=frozenset(), **more)
        if kind < 0.8:
            return Scoring(ids, [(1, 2, 3), (1, 2, 4, 5), (7,), (8, 8)], room=LENGTH, **more)
        return Sequence(ids, **more)

    def compute(self, chunks):
        planned = [id(chunk.sequence) for chunk in chunks]
        assert len(set(planned)) == len(planned)
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.slot is not None
            assert len(chunk) > 0
            assert chunk.start == sequence.done
            assert self.slots.reserved <= self.slots.budget
            sequence.done = chunk.stop
            prefix = sequence.prefix or Prefix(())
            for scope, tokens in prefix.parts(chunk.start, chunk.stop):
                ids = prefix.ids[:tokens]
                self.prefixes.put(scope, ids, self.slots.save(chunk.slot, tokens))
        for chunk in chunks:
            sequence = chunk.sequence
            if isinstance(sequence, Decoding) and sequence.remaining == 0:
                sequence.accept(1, 0.0)
            elif isinstance(sequence, Scoring):
                sequence.targets(chunk.start, chunk.stop)
                sequence.advance()
            if sequence.ended:
                self.scheduler.remove(sequence)
                self.alive.remove(sequence)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_somebody_gets_on_in_every_step_and_nothing_is_left(first):
    preemptions = 0
    for seed in range(first, first + 100):
        load = Load(seed)
        load.run()
        preemptions += load.scheduler.preemptions
    assert preemptions > 10
