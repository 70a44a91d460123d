"""What `customer.reply` takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gptflow.task import Input, Output, Text
from gptflow_customer_service.knowledge import Locale
from gptflow_customer_service.messages import HandoffReason

Action = Literal["answer", "clarify", "handoff", "close"]
AnswerMode = Literal["faq", "extractive", "generated"]


class Turn(Input):
    """One message. `assistant` is this service, `agent` a person who works for the company."""

    role: Literal["user", "assistant", "agent"]
    text: Text = Field(max_length=20_000)


class Conversation(Input):
    """A conversation so far, the oldest turn first. There is no state beside it."""

    turns: tuple[Turn, ...] = Field(
        min_length=1, max_length=200, description="the last one is the user's"
    )
    session_id: str | None = Field(
        None, max_length=128, description="handed on to whoever takes the conversation over"
    )
    locale: Locale | None = Field(
        None, description="language to reply in; by default that of the user's messages"
    )
    handoff_enabled: bool = Field(True, description="False where nobody can take over")

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        return {"turns": [{"role": "user", "text": text}]}

    @model_validator(mode="after")
    def _user_speaks_last(self) -> Self:
        if self.turns[-1].role != "user":
            raise ValueError("the last turn must be the user's")
        return self


class Intent(Output):
    """What the message is about. `score` is the label's probability."""

    label: str
    score: float
    probs: dict[str, float]


class Answer(Output):
    """The answer's text, and how it came about.

    `faq` is a stored answer word for word, `extractive` one sentence of it, `generated` a
    text that was checked against its citations. `answer_id` is the first cited entry.
    """

    text: str
    mode: AnswerMode
    answer_id: str


class Citation(Output):
    """A passage of the knowledge base, word for word. `score`: see `matching.Match`."""

    doc_id: str
    quote: str
    score: float


class GroundingReport(Output):
    """How much of the answer its citations support; see `grounding.Grounding`."""

    supported_ratio: float
    unsupported: list[str]


class Clarification(Output):
    """A question back, and the stored questions to choose from."""

    question: str
    options: list[str]


class Handoff(Output):
    """What a person needs to take over. The summary holds no personal data."""

    reason: HandoffReason
    message: str
    summary: str
    queue: Literal["shop", "bank", "general"]
    session_id: str | None


class Reply(Output):
    """What to do next, and what to say.

    Attributes:
        action: what happens; never said in `message` alone.
        message: what to show the customer, whatever the action is.
        pii: how many pieces of personal data the user's turns hold, by kind.
    """

    action: Action
    message: str
    intent: Intent
    answer: Answer | None = None
    citations: list[Citation] = Field(default_factory=list)
    grounding: GroundingReport | None = None
    clarification: Clarification | None = None
    handoff: Handoff | None = None
    locale: Locale
    pii: dict[str, int]
