"""Drawing for many rows at once gives each row what it would get alone."""

from __future__ import annotations

import pytest
import torch

from gptflow.engine import sampler
from gptflow.engine.sampler import sample
from gptflow.engine.sequence import Decoding, Sampling

SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=3.0, top_p=0.999),  # more candidates than are looked at first
    Sampling(temperature=2.0, top_p=0.0),
    Sampling(temperature=1.0, min_p=0.2),
    Sampling(temperature=1.0, min_p=1e-9, top_p=0.99999),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=40),
    Sampling(temperature=1.5, top_k=40, top_p=0.7, min_p=0.01),
    Sampling(temperature=1.0, top_k=10_000),
    Sampling(temperature=1.2, repetition_penalty=1.5),
]


def sequences(seed=0):
    return [
        Decoding([3, 4, 5], sampling=sampling, limit=9, end_ids=frozenset(), seed=seed + i)
        for i, sampling in enumerate(SETTINGS)
    ]


def reference(row, sampling, number):
    """One row by itself, all its tokens sorted."""
    probs = torch.softmax((row - row.max()) / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        kept, index = probs, torch.arange(len(probs))
    else:
        kept, index = torch.topk(probs, min(sampling.top_k or len(probs), len(probs)))
        if sampling.top_k:
            kept = kept / kept.sum()
        keep = (kept >= sampling.min_p * kept[0]) & (kept.cumsum(0) - kept < sampling.top_p)
        keep[0] = True
        kept = torch.where(keep, kept, 0.0)
    mass = kept.double().cumsum(0)
    return int(index[int(torch.searchsorted(mass, number * mass[-1].item(), right=True))])


@pytest.mark.parametrize("seed", range(4))
def test_each_row_gets_what_it_would_get_alone(seed, monkeypatch):
    torch.manual_seed(seed)
    logits = torch.randn(len(SETTINGS), 6000) * 3
    together = sample(logits.clone(), sequences(seed))
    alone = [
        sample(logits[i : i + 1].clone(), [sequence])[0]
        for i, sequence in enumerate(sequences(seed))
    ]
    assert together == alone
    monkeypatch.setitem(sampler._ROWS_AT_ONCE, "cpu", 3)
    assert sample(logits.clone(), sequences(seed)) == alone
    for row, sequence, drawn in zip(logits, sequences(seed), together, strict=True):
        sampling = sequence.sampling
        if sampling.repetition_penalty == 1 and sampling.temperature > 0:
            assert drawn.token == reference(row, sampling, sequence.draw()), sampling
        assert drawn.logprob == pytest.approx(row.log_softmax(-1)[drawn.token].item(), abs=1e-5)


def test_the_settings_of_neighbours_do_not_matter():
    torch.manual_seed(0)
    logits = torch.randn(1, 6000).expand(40, -1).clone()
    mixed = [
        Decoding([3], sampling=SETTINGS[i % len(SETTINGS)], limit=9, end_ids=frozenset(), seed=7)
        for i in range(40)
    ]
    drawn = sample(logits, mixed)
    for i, one in enumerate(drawn):
        assert one == drawn[i % len(SETTINGS)]


def test_rows_that_are_no_numbers_fail_alone():
    logits = torch.randn(len(SETTINGS), 600)
    expected = sample(logits.clone(), sequences())
    logits[3] = torch.nan
    logits[6, 5] = torch.inf
    logits[9] = -torch.inf
    drawn = sample(logits, sequences())
    for i, (one, other) in enumerate(zip(drawn, expected, strict=True)):
        if i in (3, 6, 9):
            assert "not a number" in str(one)
        else:
            assert one == other
