"""The task `recommend.interest`: which titles go with a history of titles, and nothing else.

It is what the adapter `interest` is trained by. `recommend.rank` weighs its answer with features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from gptflow.heads import Scored
from gptflow.prompt import Prompt
from gptflow.task import Context, Input, Output, Task
from gptflow_recommendation_scoring import interest
from gptflow_recommendation_scoring.defaults import NEWEST_EVENTS
from gptflow_recommendation_scoring.schema import Id, Title
from gptflow_recommendation_scoring.taste import Taste

Judge = Literal["trained", "likelihood"]
"""The adapter's head, in log odds; or the model without one, see the README."""


class Item(Input):
    """An item; a bare title is one whose id is the title."""

    id: Id
    title: Title

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        return {"id": text[:256], "title": text}


class Titles(Input):
    history: tuple[Title, ...] = Field(
        min_length=1, max_length=10_000, description="oldest first; the newest are read"
    )
    items: tuple[Item, ...] = Field(min_length=1, max_length=500)
    judge: Judge = Field("trained", description="where there is no adapter, `likelihood` judges")

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        """A line a title, which is how training rows write a history."""
        return {"history": [line for line in text.splitlines() if line.strip()]}


class ScoredItem(Output):
    """An item and its place; `score` compares items of one answer, more is better."""

    id: str
    rank: int
    score: float


class Interests(Output):
    """Every item, the best first; what ties is in the order of the ids.

    Attributes:
        judge: that judged.
    """

    items: list[ScoredItem]
    judge: Judge


class ScoreInterest(Task[Titles, Scored, Interests]):
    """Score titles by how well they go with a history of titles."""

    name = "recommend.interest"
    examples = "interest_examples.jsonl"
    prompt = Prompt.file("next.j2", truncate="history", keep="end")
    history = Prompt.file("history.j2", truncate="history", keep="end")
    nobody = Prompt.file("nobody.j2")
    head = interest.HEAD

    async def run(self, input: Titles, ctx: Context) -> Interests:
        texts = [item.title for item in input.items]
        trained = input.judge == "trained" and ctx.is_trained(self.head)
        if trained:
            found = await interest.by_head(ctx, self.prompt, input.history, texts)
        else:
            taste = Taste.of_titles(input.history[-NEWEST_EVENTS:])
            found = await interest.by_likelihood(ctx, self.history, self.nobody, taste, texts)
        scored = [(item, each.margin or 0.0) for item, each in zip(input.items, found, strict=True)]
        scored.sort(key=lambda pair: (-pair[1], pair[0].id, pair[0].title))
        return Interests(
            items=[
                ScoredItem(id=item.id, rank=rank, score=score)
                for rank, (item, score) in enumerate(scored, start=1)
            ],
            judge="trained" if trained else "likelihood",
        )
