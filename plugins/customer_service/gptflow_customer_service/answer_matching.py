"""`customer.match`: which of some stored or drafted replies fits a customer's question best."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gptflow.heads import Score, Scored
from gptflow.prompt import Prompt
from gptflow.task import Context, Input, Output, Task, Text
from gptflow_customer_service.personal_data import mask
from gptflow_customer_service.retrieval import Index

MAX_REPLY = 600
"""Characters of a candidate that the adapter reads. It is trained on replies of a few lines."""


class Candidate(Input):
    """A reply to choose among."""

    text: Text = Field(max_length=20_000)
    id: str | None = Field(
        None, min_length=1, max_length=128, description="by default its place in the list, from 0"
    )


class Question(Input):
    """What a customer asks, and what might be replied."""

    question: Text = Field(
        max_length=20_000,
        description="the last message; the one that it replies to may stand on a line above it",
    )
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=50)

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        return {"question": text}

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = self.ids
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise ValueError(f"several candidates have the id {twice[0]!r}")
        return self

    @property
    def ids(self) -> list[str]:
        """Of each candidate, in the order given."""
        return [
            str(place) if each.id is None else each.id for place, each in enumerate(self.candidates)
        ]


class Ranked(Output):
    """A candidate, and how well it fits. Scores compare the candidates of one question only."""

    id: str
    score: float


class Matches(Output):
    """All candidates, the one that fits best first. Equal ones come in the order given.

    `by` says what the scores are: BM25 of the words in common, or a trained head's.
    """

    ranked: list[Ranked]
    by: Literal["bm25", "adapter"]


class MatchAnswer(Task[Question, Scored, Matches]):
    """Rank replies by how well they fit a question: by an adapter, or BM25 where none is better."""

    name = "customer.match"
    examples = "match_examples.jsonl"
    prompt = Prompt(
        "{{ question }}\nReply: {{ item }}\nDoes the reply fit?", truncate="question", keep="end"
    )
    head = Score(each="candidates", adapter="answer_match")

    async def run(self, input: Question, ctx: Context) -> Matches:
        question = _masked(input.question)
        texts = [each.text for each in input.candidates]
        if not ctx.is_trained(self.head):
            scores = await asyncio.to_thread(_bm25, question, texts)
            return _ranked(input, scores, "bm25")
        items = [text[:MAX_REPLY] for text in texts]
        raw = await ctx.ask(self.head, self.prompt, {"question": question, "candidates": items})
        assert isinstance(raw, Scored)
        return _ranked(input, raw.values, "adapter")


def _masked(question: str) -> str:
    """Without personal data and blank lines."""
    lines = (" ".join(line.split()) for line in mask(question)[0].splitlines())
    return "\n".join(line for line in lines if line)


def _bm25(question: str, texts: Sequence[str]) -> list[float]:
    scores = [0.0] * len(texts)
    for hit in Index(texts).search(question, len(texts)):
        scores[hit.position] = hit.score
    return scores


def _ranked(input: Question, scores: Sequence[float], by: Literal["bm25", "adapter"]) -> Matches:
    pairs = zip(input.ids, scores, strict=True)
    best = sorted(pairs, key=lambda pair: -pair[1])
    return Matches(ranked=[Ranked(id=name, score=score) for name, score in best], by=by)
