"""Trained heads: from hidden states and an adapter's matrix to a label, a number or spans."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from gptflow.engine.adapters import LinearHead
from gptflow.engine.locating import Token
from gptflow.heads import Chosen, Span, Usage
from gptflow.terms import extents

if TYPE_CHECKING:
    from gptflow.adapter import ClassifyHead, TagHead


def as_logits(numbers: Rows[float]) -> torch.Tensor:
    """What another kind of model gives, as `choose` takes it."""
    return torch.tensor(numbers)


def choose(spec: ClassifyHead, logits: torch.Tensor, labels: Rows[str], usage: Usage) -> Chosen:
    """The label of logits `[labels of the head]`, the probabilities in the order of `labels`."""
    likely = (logits / spec.temperature).softmax(-1)
    scores = dict(zip(spec.labels, logits.tolist(), strict=True))
    probs = dict(zip(spec.labels, likely.tolist(), strict=True))
    best = max(labels, key=scores.__getitem__)
    return Chosen(
        label=best,
        probs={label: probs[label] for label in labels},
        scores={label: scores[label] for label in labels},
        threshold=spec.thresholds.get(best, 0.0),
        in_scope=spec.energy is None or float(logits.logsumexp(-1)) >= spec.energy,
        calibrated=True,
        usage=usage,
    )


def tag(
    spec: TagHead, head: LinearHead, hidden: torch.Tensor, tokens: Rows[Token], text: str
) -> tuple[Span, ...]:
    """The spans of a text, which end where words do: a model's tokens are often parts of words.

    Args:
        hidden: of the text's tokens, `[tokens, width]`.
        tokens: where each of them stands in the text.
    """
    logprobs = (head(hidden) / spec.temperature).log_softmax(-1)
    path = viterbi(logprobs)
    chosen = logprobs.gather(1, torch.tensor(path)[:, None])[:, 0].tolist()
    spans: list[Span] = []
    words = extents(text)
    starts, ends = [start for start, _ in words], [end for _, end in words]
    at = after = 0
    while at < len(path):
        end = at + 1
        if path[at] == 0:
            at = end
            continue
        while end < len(path) and path[end] == path[at] + 1:
            end += 1
        start, stop = tokens[at].start, max(token.end for token in tokens[at:end])
        first, after = max(bisect_right(ends, start), after), bisect_left(starts, stop)
        if first < after:
            start, stop = starts[first], ends[after - 1]
            spans.append(
                Span(
                    text=text[start:stop],
                    label=spec.labels[path[at] // 2],
                    start=start,
                    end=stop,
                    score=math.exp(sum(chosen[at:end]) / (end - at)),
                )
            )
        at = end
    return tuple(spans)


def viterbi(logprobs: torch.Tensor) -> list[int]:
    """The likeliest rows of tags that are valid IOB2: an I follows the B or I of its label.

    Args:
        logprobs: `[tokens, 1 + 2 * labels]`: O, then B and I of each label.
    """
    tags = logprobs.shape[1]
    allowed = torch.zeros(tags, tags)  # from, to
    inside = torch.arange(2, tags, 2)
    allowed[:, inside] = -torch.inf
    allowed[inside - 1, inside] = 0
    allowed[inside, inside] = 0
    score = logprobs[0].clone()
    score[inside] = -torch.inf
    steps: list[torch.Tensor] = []
    for row in logprobs[1:]:
        best, origin = (score[:, None] + allowed).max(0)
        score = best + row
        steps.append(origin)
    path = [int(score.argmax())]
    for origin in reversed(steps):
        path.append(int(origin[path[-1]]))
    return path[::-1]
