"""Hand-offs: what the customer is told, and what the person who takes over is."""

from __future__ import annotations

from typing import Literal

from gptflow_customer_service.heard import Heard
from gptflow_customer_service.messages import MESSAGES, HandoffReason
from gptflow_customer_service.schema import Handoff, Intent

QUEUES: dict[str, Literal["shop", "bank"]] = {
    **dict.fromkeys(("orders", "delivery", "returns", "refunds", "payments", "products"), "shop"),
    **dict.fromkeys(("cards", "transfers", "accounts", "rates"), "bank"),
}

EARLIER = 3
LENGTH = 200
"""How many of the messages before the last one a summary quotes, and characters of each."""


def build_handoff(
    reason: HandoffReason, intent: Intent, heard: Heard, session_id: str | None
) -> Handoff:
    """A hand-off to the queue of the intent. The summary quotes; it does not paraphrase."""
    messages = MESSAGES[heard.last.locale]
    earlier = [_shorten(message.text) for message in heard.messages[:-1][-EARLIER:]]
    parts = [
        messages.summary.format(intent=intent.label, last=_shorten(heard.last.text)),
        messages.earlier.format(texts=" / ".join(earlier)) if earlier else "",
        messages.personal.format(kinds=", ".join(heard.pii)) if heard.pii else "",
    ]
    return Handoff(
        reason=reason,
        message=messages.handoff[reason],
        summary="\n".join(part for part in parts if part),
        queue=QUEUES.get(intent.label, "general"),
        session_id=session_id,
    )


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
