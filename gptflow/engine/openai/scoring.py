"""Scoring: the exact log-likelihood of given continuations, from what a server tells.

Exact means: under the whole vocabulary, for the continuation's own tokens after the prompt's.
Servers tell in one of three ways (`Capabilities.scoring`):

    token_ids   name the tokens and get their log-probabilities (vLLM). One request per
                beginning that continuations share; the prompt is in the server's prefix cache.
    echo        have prompt and continuation echoed with their log-probabilities. One request
                of as many prompts as there are continuations.
    top         ask for the likeliest tokens, ever more of them, until the wanted ones are
                among them (llama.cpp). One request per beginning, or two or three.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence

from gptflow.engine.openai.caller import Caller
from gptflow.engine.openai.capabilities import Capabilities
from gptflow.engine.openai.wire import (
    COMPLETIONS,
    echoed_logprobs,
    echoing,
    likeliest,
    naming,
    next_logprobs,
)
from gptflow.errors import EngineError
from gptflow.heads import Choose, Chosen, Usage

Ids = tuple[int, ...]

_FIRST_TOP, _GROWTH = 256, 16
_MOST_TOP = 1 << 20
"""More tokens than any vocabulary has."""


def require_scoring(can: Capabilities) -> None:
    """Refuse a server that does not tell how likely given tokens are.

    Raises:
        UnsupportedHead: it does not.
    """
    can.require(
        "scoring",
        what="log-probabilities of given tokens",
        hint="vLLM and llama.cpp's own server do. Or use Generate or Json.",
    )


async def totals(caller: Caller, ids: Ids, continuations: Sequence[Ids]) -> tuple[float, ...]:
    """Per continuation, the sum of its tokens' log-probabilities after the prompt `ids`.

    Raises:
        EngineError: the server left a token out, or told something that is not a number.
    """
    if caller.can.scoring == "echo":
        found = await _echoed(caller, ids, continuations)
    else:
        found = await _step_by_step(caller, ids, continuations)
    if not all(map(math.isfinite, found)):
        raise EngineError("The model's output for this request is not a number.")
    return found


def choose(
    head: Choose, means: Sequence[float], baseline: Sequence[float] | None, usage: Usage
) -> Chosen:
    """`Choose`'s answer: the softmax of the labels' calibrated mean log-probabilities."""
    scores = means
    if baseline is not None:
        scores = [a - b for a, b in zip(means, baseline, strict=True)]
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = sum(weights)
    return Chosen(
        label=head.labels[scores.index(highest)],
        probs={label: w / total for label, w in zip(head.labels, weights, strict=True)},
        scores=dict(zip(head.labels, scores, strict=True)),
        usage=usage,
    )


async def _echoed(caller: Caller, ids: Ids, continuations: Sequence[Ids]) -> tuple[float, ...]:
    answer = await caller.post(COMPLETIONS, echoing([ids + tail for tail in continuations]))
    sums: dict[int, float] = {}
    for choice in answer.get("choices") or ():
        index = int(choice.get("index", 0))
        length = len(ids) + len(continuations[index])
        values = echoed_logprobs(choice, length)
        if values is not None:
            sums[index] = sum(values[len(ids) :])
    if len(sums) != len(continuations):
        raise _left_out()
    return tuple(sums[i] for i in range(len(continuations)))


async def _step_by_step(
    caller: Caller, ids: Ids, continuations: Sequence[Ids]
) -> tuple[float, ...]:
    """Ask once after each beginning that some continuation has, for all that may come next."""
    wanted: defaultdict[Ids, set[int]] = defaultdict(set)
    for tail in continuations:
        for i, token in enumerate(tail):
            wanted[tail[:i]].add(token)
    # The bare prompt first: then it is in the server's cache for the others.
    found: dict[Ids, dict[int, float]] = {(): await _after(caller, ids, wanted.pop(()))}
    others = await asyncio.gather(
        *(_after(caller, ids + beginning, tokens) for beginning, tokens in wanted.items())
    )
    found |= dict(zip(wanted, others, strict=True))
    return tuple(
        sum(found[tail[:i]][token] for i, token in enumerate(tail)) for tail in continuations
    )


async def _after(caller: Caller, ids: Ids, tokens: set[int]) -> dict[int, float]:
    """The log-probability of each of the tokens after `ids`."""
    if caller.can.scoring == "token_ids":
        answer = await caller.post(COMPLETIONS, naming(ids, sorted(tokens)))
        return _complete(next_logprobs(answer["choices"][0]), tokens)
    count = _FIRST_TOP
    while True:
        body = {**likeliest(ids, count), **caller.server.dialect.always}
        answer = await caller.post(COMPLETIONS, body)
        told = next_logprobs(answer["choices"][0])
        if tokens <= told.keys() or len(told) < count or count >= _MOST_TOP:
            return _complete(told, tokens)
        count *= _GROWTH


def _complete(told: dict[int, float], tokens: set[int]) -> dict[int, float]:
    if not tokens <= told.keys():
        raise _left_out()
    return told


def _left_out() -> EngineError:
    return EngineError(
        "The model server did not tell the log-probability of every label's tokens.",
        hint="`gptflow doctor` shows what it can do; look at its limit of log-probabilities.",
    )
