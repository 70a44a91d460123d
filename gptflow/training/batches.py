"""Batches: the order of the examples, which depends on the seed and the epoch and nothing else.

Examples of about one length go together, so that little is padded: the shuffled examples are cut
into pools, each pool is sorted by length and cut into batches, and the batches are shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gptflow.training.example import Example

POOL = 32
"""Batches that are sorted by length together."""


def epoch_batches(
    examples: Sequence[Example], batch: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """The numbers of the examples in each batch of an epoch."""
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311
    order = list(range(len(examples)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    size = batch * POOL
    for start in range(0, len(order), size):
        pool = sorted(order[start : start + size], key=lambda i: (examples[i].longest, i))
        batches += [pool[at : at + batch] for at in range(0, len(pool), batch)]
    generator.shuffle(batches)
    return batches


def mixed_batches(
    examples: Sequence[Example], old: int, batch: int, share: float, *, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch over the new examples, each with some old ones besides.

    Args:
        examples: the new ones, and after them the old ones.
        old: how many are old.
        share: of a batch that is old, at least one example of it where there are any.
    """
    new = len(examples) - old
    replayed = replayed_of(batch, share) if old else 0
    batches = epoch_batches(examples[:new], batch - replayed, seed=seed, epoch=epoch)
    generator = random.Random(f"{seed}/{epoch}/replay")  # noqa: S311
    drawn: list[int] = []
    for each in batches if replayed else ():
        # A batch that is not full gets its share, too.
        for _ in range(max(1, round(replayed * len(each) / (batch - replayed)))):
            if not drawn:
                drawn = list(range(new, len(examples)))
                generator.shuffle(drawn)
            each.append(drawn.pop())
    return batches


def replayed_of(batch: int, share: float) -> int:
    """How many examples of a batch are old."""
    return min(max(1, round(batch * share)), batch - 1) if share else 0


def passes(examples: Sequence[Example], numbers: Sequence[int], tokens: int) -> list[list[int]]:
    """A batch cut into parts that fit one forward pass, each sorted by length.

    Args:
        tokens: most in one pass, padding included; an example that has more goes alone.
    """
    parts: list[list[int]] = []
    texts = 0
    for number in sorted(numbers, key=lambda i: (examples[i].longest, i)):
        example = examples[number]
        # The longest so far is the last one.
        grown = texts + len(example.texts)
        if parts and grown * example.longest <= tokens:
            parts[-1].append(number)
            texts = grown
        else:
            parts.append([number])
            texts = len(example.texts)
    return parts
