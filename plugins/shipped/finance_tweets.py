"""Finance tweets: 20 topics and 3 sentiments, two heads of one adapter."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

from gptflow_sentiment_monitoring.topics import TOPICS
from shipped.recipe import UPPER, Recipe, Rows, write_rows

SENTIMENTS = ("negative", "positive", "neutral")
"""As the data set numbers them: bearish, bullish, neutral."""

_PARTS = (
    ("topic", TOPICS, "twitter_fin_topic/topic", "Twitter Financial News Topic"),
    ("sentiment", SENTIMENTS, "twitter_fin_sentiment/sent", "Twitter Financial News Sentiment"),
)


def prepare(data: Path, out: Path) -> Sequence[Rows]:
    """The published splits: `train` to train on, `valid` to test with."""
    made: list[Rows] = []
    for head, labels, stem, name in _PARTS:
        for split, part in (("train", "train"), ("valid", "test")):
            with gzip.open(data / f"{stem}_{split}.csv.gz", "rt", encoding="utf-8") as file:
                rows = [
                    {"text": row["text"], head: labels[int(row["label"])]}
                    for row in csv.DictReader(file)
                ]
            made.append(
                Rows(
                    path=write_rows(out / f"{head}-{part}.jsonl", rows),
                    split="train" if part == "train" else "test",
                    name=name,
                    licence="MIT",
                    labels={head: head},
                )
            )
    return made


RECIPE = Recipe(
    alias="finance_tweets",
    plugin="sentiment_monitoring",
    task="sentiment.classify",
    kind="labels",
    prepare=prepare,
    settings={**UPPER, "epochs": 3},
    gates={
        "sentiment.accuracy": 0.845,
        "sentiment.macro_f1": 0.80,
        "topic.accuracy": 0.86,
        "topic.macro_f1": 0.82,
        "sentiment.ece": 0.04,
        "topic.ece": 0.04,
    },
)
