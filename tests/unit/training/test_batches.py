"""Batches: every example once an epoch, alike ones together, the same order for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gptflow.training.batches import epoch_batches, passes
from gptflow.training.example import Example, Text


def make(lengths: list[int], texts: int = 1) -> list[Example]:
    return [Example((Text(tuple(range(n))),) * texts, None, 1.0, i) for i, n in enumerate(lengths)]


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=200)


@given(lengths, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_holds_every_example_once(
    sizes: list[int], batch: int, seed: int, epoch: int
) -> None:
    examples = make(sizes)
    batches = epoch_batches(examples, batch, seed=seed, epoch=epoch)
    assert sorted(i for each in batches for i in each) == list(range(len(examples)))
    assert max(map(len, batches)) <= batch
    assert len(batches) == -(-len(examples) // batch)
    assert batches == epoch_batches(examples, batch, seed=seed, epoch=epoch)


def test_epochs_and_seeds_differ() -> None:
    examples = make(list(range(1, 100)))
    orders = {
        str(epoch_batches(examples, 8, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_little_is_padded() -> None:
    examples = make([1 + (7 * n) % 64 for n in range(512)])
    batches = epoch_batches(examples, 16, seed=0, epoch=0)
    padded = sum(len(b) * max(examples[i].longest for i in b) for b in batches)
    assert padded < 1.1 * sum(example.tokens for example in examples)


@given(lengths, st.integers(16, 300), st.integers(1, 3))
def test_a_pass_fits(sizes: list[int], tokens: int, texts: int) -> None:
    examples = make(sizes, texts)
    numbers = list(range(len(examples)))
    parts = passes(examples, numbers, tokens)
    assert sorted(i for part in parts for i in part) == numbers
    for part in parts:
        padded = texts * len(part) * max(examples[i].longest for i in part)
        assert padded <= tokens or len(part) == 1
