"""Prompts and plain text from published data sets, to compare what an engine answers.

The folder is not part of the repository; see `benchmarks/README.md`. Prompts come from the
training splits: what is compared is arithmetic, and test files stay untouched.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptflow.heads import Choose
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Request

FOLDER = Path(__file__).parents[2] / "shared" / "data"
"""Beside the checkout."""

MOODS = ("negative", "positive", "neutral")
TOPICS = (
    "analyst update", "central banks", "company news", "corporate debt", "dividend", "earnings",
    "energy", "financials", "currencies", "opinion", "metals", "IPO", "legal", "acquisitions",
    "macro", "markets", "politics", "personnel change", "stock commentary", "stock movement",
)  # fmt: skip
DEPARTMENTS = ("airline", "finance", "insurance", "software")
_INTENTS = 10
"""Intents of a data set to choose from, so that a prompt stays short."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A prompt with labels to choose from, and the one that people gave."""

    kind: str
    prompt: RenderedPrompt
    labels: tuple[str, ...]
    answer: str

    def request(self) -> Request:
        return Request(
            prompt=self.prompt,
            head=Choose(labels=self.labels),
            baseline=self.prompt.content_free(),
        )


def questions(folder: Path, count: int, seed: int = 7) -> list[Question]:
    """A quarter each of moods and topics of financial posts, of intents, and of the rest.

    The rest is half departments of support turns, half whether a passage answers a question.
    """
    dice = random.Random(seed)
    quarter, eighth = count // 4, count // 8
    parts: list[tuple[Iterable[Question], int]] = [
        (_posts(folder, "mood", "twitter_fin_sentiment/sent_train", MOODS), quarter),
        (_posts(folder, "topic", "twitter_fin_topic/topic_train", TOPICS), quarter),
        (_intents("banking", _banking(folder)), eighth),
        (_intents("assistant", _assistant(folder)), quarter - eighth),
        (_departments(folder), eighth),
        (_passages(folder, dice), count - 3 * quarter - eighth),
    ]
    return [question for part, n in parts for question in _some(part, n, dice)]


def texts(folder: Path) -> Iterator[str]:
    """Natural English: encyclopedia paragraphs, then conversations."""
    for article in _json(folder / "xquad_en_zh/xquad.en.json.gz")["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
    for line in _lines(folder / "sgd_dev_subset/dialogues.jsonl.gz"):
        yield "\n".join(turn["t"] for turn in json.loads(line)["turns"])


def _posts(folder: Path, kind: str, name: str, labels: tuple[str, ...]) -> Iterator[Question]:
    prompt = Prompt("What is the " + kind + " of this financial post?\nPost: {{ text }}\nAnswer:")
    for row in csv.DictReader(_lines(folder / f"{name}.csv.gz")):
        yield _question(kind, prompt, row["text"], labels, labels[int(row["label"])])


def _banking(folder: Path) -> Iterator[tuple[str, str]]:
    for row in csv.DictReader(_lines(folder / "banking77/train.csv.gz")):
        yield row["text"], row["category"]


def _assistant(folder: Path) -> Iterator[tuple[str, str]]:
    yield from _json(folder / "clinc150/data_full.json.gz")["train"]


def _intents(kind: str, source: Iterable[tuple[str, str]]) -> Iterator[Question]:
    prompt = Prompt("A customer writes: {{ text }}\nThis is about")
    rows = list(source)
    labels: dict[str, str] = {}
    for _, intent in rows:
        if intent in labels or len(labels) < _INTENTS:
            labels[intent] = intent.replace("_", " ")
    for text, intent in rows:
        if intent in labels:
            yield _question(kind, prompt, text, tuple(labels.values()), labels[intent])


def _departments(folder: Path) -> Iterator[Question]:
    prompt = Prompt("A customer tells the support: {{ text }}\nThe company's business:")
    for name in DEPARTMENTS:
        rows = csv.DictReader(_lines(folder / f"multidogo/{name}.train.tsv.gz"), delimiter="\t")
        for row in rows:
            if len(row["utterance"].split()) >= 6:
                yield _question("department", prompt, row["utterance"], DEPARTMENTS, name)


def _passages(folder: Path, dice: random.Random) -> Iterator[Question]:
    prompt = Prompt(
        "Passage: {{ text }}\nQuestion: {{ question }}\nDoes the passage answer the question?"
    )
    for article in _json(folder / "xquad_en_zh/xquad.en.json.gz")["data"]:
        asked = [q["question"] for p in article["paragraphs"] for q in p["qas"]]
        for paragraph in article["paragraphs"]:
            own = [q["question"] for q in paragraph["qas"]]
            question = dice.choice(own if dice.random() < 0.5 else asked)
            start = " ".join(paragraph["context"].split()[:60])
            rendered = prompt.render({"text": start, "question": question})
            answer = "Yes" if question in own else "No"
            yield Question("passage", rendered, ("Yes", "No"), answer)


def _question(
    kind: str, prompt: Prompt, text: str, labels: tuple[str, ...], answer: str
) -> Question:
    return Question(kind, prompt.render({"text": text}), labels, answer)


def _some(questions: Iterable[Question], count: int, dice: random.Random) -> list[Question]:
    found = list(questions)
    return dice.sample(found, min(count, len(found)))


def _json(path: Path) -> Mapping[str, Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from file
