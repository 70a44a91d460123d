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
