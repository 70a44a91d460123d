"""Sampling: the next token of every sequence that wants one.

Each sequence draws one number of its own per token and looks it up in its own distribution,
so that what it says depends on its seed and not on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from gptflow.engine.sequence import Decoding, Sampling

_CANDIDATES = 512
"""Tokens to sort at first; nearly always enough for top-p, and far fewer than all."""


def sample(logits: torch.Tensor, sequences: Rows[Decoding]) -> tuple[list[int], list[float]]:
    """Draw one token per row.

    Args:
        logits: `[rows, vocabulary]` in float32; changed in place.
        sequences: the rows' sequences.

    Returns:
        The tokens, and their log-probabilities under the model as it is, before penalties,
        temperature and grammar. They are NaN where the model's output is.
    """
    norms = torch.logsumexp(logits, dim=-1)
    raw = logits
    if any(s.constraint or s.sampling.repetition_penalty != 1 for s in sequences):
        raw = logits.clone()
        for row, sequence in zip(logits, sequences, strict=True):
            if sequence.sampling.repetition_penalty != 1:
                _penalise(row, sequence)
            if sequence.constraint is not None:
                row[~sequence.constraint.mask()] = -torch.inf
    tokens = logits.argmax(dim=-1)
    for i, sequence in enumerate(sequences):
        if sequence.sampling.temperature > 0:
            tokens[i] = _draw(logits[i], sequence.sampling, sequence.draw())
    logprobs = raw.gather(1, tokens[:, None])[:, 0] - norms
    return tokens.tolist(), logprobs.tolist()


def _penalise(row: torch.Tensor, sequence: Decoding) -> None:
    """Make the tokens seen so far less likely (Keskar et al. 2019, as in transformers)."""
    seen = torch.tensor(list(set(sequence.tokens)), device=row.device)
    values = row[seen]
    penalty = sequence.sampling.repetition_penalty
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _draw(row: torch.Tensor, sampling: Sampling, number: float) -> int:
    """Look up `number` in 0..1 in the distribution that the settings leave of a row."""
    probs = torch.softmax(row / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        return _look_up(probs, number)
    size = sampling.top_k or _CANDIDATES
    while True:
        kept, index = torch.topk(probs, min(size, len(probs)))
        if sampling.top_k:
            kept = kept / kept.sum()
        keep = kept >= sampling.min_p * kept[0]
        # The token with which the mass reaches p is kept as well.
        keep &= kept.cumsum(0) - kept < sampling.top_p
        if sampling.top_k or not keep[-1] or len(kept) == len(probs):
            return int(index[_look_up(torch.where(keep, kept, 0.0), number)])
        size *= 8


def _look_up(probs: torch.Tensor, number: float) -> int:
    mass = probs.double().cumsum(0)
    place = int(torch.searchsorted(mass, number * mass[-1].item(), right=True))
    return min(place, int(probs.nonzero()[-1]) if place >= len(probs) else place)
