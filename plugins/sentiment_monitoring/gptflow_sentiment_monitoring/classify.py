"""`sentiment.classify`: mood, topic and securities of one post."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from gptflow import Chosen, Classify, Context, Input, MultiHead, Output, Prompt, Task, Text
from gptflow.heads import Choices
from gptflow_sentiment_monitoring.text import (
    for_model,
    guess_language,
    has_words,
    is_poorly_tokenised,
)
from gptflow_sentiment_monitoring.tickers import find_mentions
from gptflow_sentiment_monitoring.topics import TOPICS, WORDS

LABELS = ("negative", "neutral", "positive")

POOR_TOKENISATION = (
    "poor_tokenisation: the default model spends more than a token on each character of this "
    "language; take the answer with caution."
)


class Post(Input):
    """A post. `ts` and `source` are carried for the caller's own use."""

    text: Text = Field(max_length=20_000)
    ts: float | str | None = None
    source: Annotated[str, Field(max_length=200)] | None = None
    lang: Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$")] | None = None


class Decision(Output):
    """A label and the probability of every label."""

    label: str
    probs: dict[str, float]


class Mood(Output):
    label: Literal["negative", "neutral", "positive"]
    probs: dict[str, float]


class Entity(Output):
    """Characters `start:end` of the post, control characters removed, name `ticker`."""

    text: str
    type: Literal["cashtag", "ticker", "company"]
    ticker: str
    start: int
    end: int


class Classified(Output):
    """`duplicate_of` is filled by monitors, which know what came before; alone it is null."""

    sentiment: Mood
    topic: Decision
    entities: list[Entity]
    lang: str
    duplicate_of: str | None = None


class Variables(TypedDict):
    post: str


class ClassifyPost(Task[Post, Choices, Classified]):
    """Mood of the market, topic and securities of a financial post."""

    name = "sentiment.classify"
    prompt = Prompt("{{ post }}", truncate="post")
    head = MultiHead(
        adapter="finance_tweets",
        heads={
            "sentiment": Classify(
                labels=LABELS,
                verbalizers={"negative": " loss", "neutral": " news", "positive": " gain"},
                fallback=Prompt.file("sentiment.j2", truncate="post"),
            ),
            "topic": Classify(
                labels=TOPICS,
                verbalizers={topic: f" {word}" for topic, word in WORDS.items()},
                fallback=Prompt.file("topic.j2", truncate="post"),
            ),
        },
    )

    def prepare(self, input: Post) -> Variables:
        return {"post": for_model(input.text)}

    async def run(self, input: Post, ctx: Context) -> Classified:
        if is_poorly_tokenised(input.lang or guess_language(input.text)):
            ctx.warn(POOR_TOKENISATION)
        if not has_words(input.text):
            ctx.abstain("there are no words in the post")
        return await super().run(input, ctx)

    def postprocess(self, input: Post, raw: Choices) -> Classified:
        sentiment, topic = raw["sentiment"], raw["topic"]
        return Classified(
            sentiment=Mood.model_validate(_decision(sentiment)),
            topic=Decision(**_decision(topic)),
            entities=[
                Entity(text=m.text, type=m.kind, ticker=m.ticker, start=m.start, end=m.end)
                for m in find_mentions(input.text)
            ],
            lang=input.lang or guess_language(input.text),
        )


class _Fields(TypedDict):
    label: str
    probs: dict[str, float]


def _decision(chosen: Chosen) -> _Fields:
    return {"label": chosen.label, "probs": dict(chosen.probs)}
