"""Answer matching: which reply fits, from dialogues between customers and agents.

Of each question one reply is right, the one that the agent gave. Wrong ones are replies to the same
intent in other dialogues; in training, also those that share most words with the question (hard
negatives by BM25, as in Karpukhin et al. 2020, "Dense Passage Retrieval").
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gptflow.terms import search_terms
from gptflow.training.evaluation.bm25 import BM25
from shipped.recipe import UPPER, Recipe, Rows, write_rows

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

SHARES: Mapping[Split, float] = {"train": 0.7, "dev": 0.1, "test": 0.2}
"""Of the dialogues, each of which is in one split only, with all that is said in it."""
QUESTIONS: Mapping[Split, int] = {"train": 1500, "dev": 150, "test": 400}
"""At most."""
CANDIDATES: Mapping[Split, int] = {"train": 5, "dev": 10, "test": 10}

LONGEST = 240
"""Characters of a reply, or of a turn of a question: some 60 tokens."""
SHORTEST = 3
"""Words of a reply."""
ALIKE = 0.5
"""Share of words in common from which on two replies say the same."""
HARD: Mapping[Split, int] = {"train": 2, "dev": 0, "test": 0}
"""Of the candidates. In a test they would be chosen against BM25, which is its floor."""
NEAR = 50
"""Replies, of those that share most words with a question, to take the hard ones from."""

_COURTESIES = ({"GOODBYE"}, {"REQ_MORE"})
"""Acts of replies that would fit anywhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """What a customer says last, with what it replies to above it, and what the agent replies."""

    dialogue: str
    intent: str
    question: str
    reply: str


def prepare(data: Path, out: Path) -> Sequence[Rows]:
    """Write the splits, a row a candidate."""
    path = data / "sgd_dev_subset/dialogues.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        dialogues = [json.loads(line) for line in file]
    parts = split(dialogues)
    asked: set[str] = set()
    return [
        Rows(
            path=write_rows(out / f"{name}.jsonl", rows(parts[name], name, asked)),
            split=name,
            name="Schema-Guided Dialogue (part of its development split)",
            licence="CC BY-SA 4.0",
        )
        for name in reversed(SPLITS)  # a question of the test is none of the training
    ]


def split(dialogues: Sequence[Mapping[str, Any]]) -> dict[Split, list[Mapping[str, Any]]]:
    """Whole dialogues by split."""
    order = sorted(dialogues, key=lambda dialogue: str(dialogue["id"]))
    random.Random(0).shuffle(order)  # noqa: S311  the same split each time
    parts: dict[Split, list[Mapping[str, Any]]] = {}
    start, share = 0, 0.0
    for name in SPLITS:
        share += SHARES[name]
        end = round(share * len(order))
        parts[name], start = order[start:end], end
    return parts


def rows(
    dialogues: Sequence[Mapping[str, Any]], name: Split, asked: set[str]
) -> list[dict[str, Any]]:
    """A right reply and wrong ones for each question of a split, all said in that split.

    Args:
        asked: questions that are taken; the new ones are added.
    """
    draw = random.Random(name)  # noqa: S311  the same rows each time
    said = [exchange for dialogue in dialogues for exchange in exchanges(dialogue)]
    wrong = _Wrong(said, draw)
    order = draw.sample(said, len(said))
    made: list[dict[str, Any]] = []
    count = 0
    for exchange in order:
        if count == QUESTIONS[name]:
            break
        if exchange.question.casefold() in asked:
            continue
        found = wrong.replies(exchange, CANDIDATES[name] - 1, hard=HARD[name])
        if len(found) < CANDIDATES[name] - 1:
            continue
        asked.add(exchange.question.casefold())
        count += 1
        made += (
            {
                "query": exchange.question,
                "candidate": reply,
                "score": float(reply == exchange.reply),
                "group": exchange.dialogue,
            }
            for reply in (exchange.reply, *found)
        )
    return made


def exchanges(dialogue: Mapping[str, Any]) -> Iterator[Exchange]:
    """What can be learnt from a dialogue; courtesies and what is too long cannot."""
    turns = dialogue["turns"]
    for place in range(1, len(turns)):
        turn, before = turns[place], turns[place - 1]
        if turn["s"] != "a" or before["s"] != "u" or set(turn["acts"]) in _COURTESIES:
            continue
        context = turns[place - 2]["t"] if place > 1 else ""
        reply, last = _line(turn["t"]), _line(before["t"])
        lines = [line for line in (_line(context), last) if line]
        fits = max(map(len, (reply, *lines))) <= LONGEST
        if last and len(reply.split()) >= SHORTEST and fits:
            intent = f"{before['svc']}.{before['intent']}"
            yield Exchange(str(dialogue["id"]), intent, "\n".join(lines), reply)


class _Wrong:
    """Finds replies that do not fit, among all that are said in a split."""

    def __init__(self, said: Sequence[Exchange], draw: random.Random) -> None:
        self._said = said
        self._draw = draw
        self._terms = [frozenset(search_terms(each.reply)) for each in said]
        self._index = BM25([each.reply for each in said])
        self._by_intent: defaultdict[str, list[int]] = defaultdict(list)
        for place, each in enumerate(said):
            self._by_intent[each.intent].append(place)

    def replies(self, asked: Exchange, count: int, *, hard: int) -> list[str]:
        """Up to `count`: up to `hard` with the question's words, the rest to its intent."""
        scores = self._index.scores(asked.question)
        near = [int(n) for n in np.argsort(-scores, kind="stable")[:NEAR] if scores[n] > 0]
        same = self._by_intent[asked.intent]
        taken = [frozenset(search_terms(asked.reply))]
        found: list[str] = []
        pools = (
            (self._draw.sample(near, len(near)), hard),
            (self._draw.sample(same, len(same)), count),
        )
        for pool, most in pools:
            for place in pool:
                if len(found) >= most:
                    break
                terms = self._terms[place]
                if self._said[place].dialogue == asked.dialogue:
                    continue
                if any(_alike(terms, other) for other in taken):
                    continue
                found.append(self._said[place].reply)
                taken.append(terms)
        return found


def _alike(first: frozenset[str], second: frozenset[str]) -> bool:
    both = first | second
    return not both or len(first & second) >= ALIKE * len(both)


def _line(text: str) -> str:
    return " ".join(text.split())


RECIPE = Recipe(
    alias="answer_match",
    plugin="customer_service",
    task="customer.match",
    kind="scores",
    prepare=prepare,
    settings={**UPPER, "epochs": 2, "batch": 8, "evaluations": 1},
    gates={"mrr": 0.5},
)
