"""`customer.intent`: what a single message asks for, among the intents of two public catalogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from pydantic import Field

from gptflow.heads import Choices, Chosen, Classify, MultiHead
from gptflow.prompt import Prompt
from gptflow.task import Input, Output, Task, Text
from gptflow_customer_service.personal_data import mask

CATALOGUES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("catalogues.json").read_text(encoding="utf-8")
)
"""The 77 intents of Banking77 (Casanueva et al. 2020) and the 150 of CLINC150 (Larson et al.
2019), by what they are about."""

ALTERNATIVES = 3


def _words(label: str) -> str:
    """The label as a person would write it."""
    return " ".join(label.strip("?").replace("_", " ").lower().split())


class Message(Input):
    text: Text = Field(max_length=20_000)


class Candidate(Output):
    """An intent, and how likely it is."""

    label: str
    probability: float


class Guess(Output):
    """The likeliest intents of a catalogue, the best one first.

    `in_scope` is false for a message that is about none of them, whatever is likeliest.
    """

    label: str
    probability: float
    in_scope: bool
    alternatives: list[Candidate]


class Intents(Output):
    """The guesses from both catalogues. `bank` knows a bank's customers, `everyday` the rest."""

    bank: Guess
    everyday: Guess


class Variables(TypedDict):
    message: str


class ClassifyIntent(Task[Message, Choices, Intents]):
    """What a message asks for: one of 77 intents of a bank's customers, and of 150 of everyday."""

    name = "customer.intent"
    examples = "intent_examples.jsonl"
    prompt = Prompt("{{ message }}", truncate="message", keep="end")
    head = MultiHead(
        adapter="customer_intents",
        heads={
            name: Classify(
                labels=tuple(labels),
                verbalizers={label: f" {_words(label)}" for label in labels},
                fallback=Prompt.file("catalogue.j2", truncate="message", keep="end"),
            )
            for name, labels in CATALOGUES.items()
        },
    )

    def prepare(self, input: Message) -> Variables:
        text, _ = mask(input.text)
        return {"message": " ".join(text.split())}

    def postprocess(self, input: Message, raw: Choices) -> Intents:
        return Intents(**{name: _guess(raw[name]) for name in CATALOGUES})


def _guess(chosen: Chosen) -> Guess:
    best = sorted(chosen.probs, key=lambda label: -chosen.probs[label])[:ALTERNATIVES]
    return Guess(
        label=chosen.label,
        probability=chosen.probs[chosen.label],
        in_scope=chosen.in_scope,
        alternatives=[Candidate(label=label, probability=chosen.probs[label]) for label in best],
    )
