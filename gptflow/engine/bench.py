"""Workloads to measure an engine by, and the measuring.

The three kinds are those of the project's comparison with other engines: the same lengths and
the same sharing of prefixes, greedy decoding that does not stop at the end token.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from gptflow.heads import Generate
from gptflow.request import Engine, Request

Kind = Literal["mixed", "label", "single"]


class Item(TypedDict):
    """One request: its prompt's token ids, and how many tokens to draw."""

    ids: list[int]
    new: int


def workload(kind: Kind, n: int = 64, seed: int = 7, vocabulary: int = 40_000) -> list[Item]:
    """Random token ids, the same for the same arguments.

    Args:
        kind: `mixed`, 96 tokens shared by all, 32 to 160 of their own, 32 to 96 to draw;
            `label`, 128 shared, 24 to 72 of their own, 1 to draw; `single`, one request of
            64 tokens with 128 to draw.
        vocabulary: ids are drawn below it, and above the first 300, which are often special.
    """
    dice = random.Random(seed)  # noqa: S311  not for secrets

    def ids(count: int) -> list[int]:
        return [dice.randrange(min(300, vocabulary // 2), vocabulary) for _ in range(count)]

    if kind == "single":
        return [Item(ids=ids(64), new=128)]
    shared = ids(96 if kind == "mixed" else 128)
    if kind == "mixed":
        return [
            Item(ids=shared + ids(dice.randint(32, 160)), new=dice.randint(32, 96))
            for _ in range(n)
        ]
    return [Item(ids=shared + ids(dice.randint(24, 72)), new=1) for _ in range(n)]


def run(engine: Engine, requests: Sequence[Item], kind: str) -> dict[str, Any]:
    """Submit all requests at once and wait for the last answer.

    Returns:
        `engine`, `kind`, `n`, `seconds`, `out_tok_s`, `in_tok_s`, `req_s`.
    """
    began = time.perf_counter()
    futures = [
        engine.submit(
            Request(
                prompt=tuple(item["ids"]),
                head=Generate(max_tokens=item["new"]),
                ignore_eos=True,
            )
        )
        for item in requests
    ]
    for future in futures:
        future.result()
    seconds = time.perf_counter() - began
    return {
        "engine": f"gptflow {engine.model.dtype}".strip(),
        "kind": kind,
        "n": len(requests),
        "seconds": round(seconds, 2),
        "out_tok_s": round(sum(item["new"] for item in requests) / seconds, 1),
        "in_tok_s": round(sum(len(item["ids"]) for item in requests) / seconds, 1),
        "req_s": round(len(requests) / seconds, 2),
    }
