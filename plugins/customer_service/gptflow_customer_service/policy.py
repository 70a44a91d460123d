"""The policy: a state machine over the user's turns.

              close match, or an option picked
        ┌────────────────────────────────────────► answer          failures = 0
        │     a good match, but not a close one
        ├────────────────────────────────────────► draft           failures = 0
        │     the first low confidence
    ────┼────────────────────────────────────────► clarify         failures = 1
        │     the second in a row, or a person asked for,
        │     or nothing that the knowledge base is about,
        │     or anger for the second time, or another language
        ├────────────────────────────────────────► handoff
        │     thanks, goodbye
        └────────────────────────────────────────► close           failures = 0

The state before the last turn is found by running the machine over the turns before it, so a
conversation may go to any worker. A turn of an agent's starts it afresh.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from gptflow_customer_service import cues, language, words
from gptflow_customer_service.knowledge import Entry, Knowledge, Locale
from gptflow_customer_service.matching import CLOSE, GOOD, WEAK, Match, Matcher
from gptflow_customer_service.messages import HandoffReason

Step = Literal["answer", "draft", "clarify", "welcome", "handoff", "thanks", "goodbye"]

OPTIONS = 3
MAX_FAILURES = 2
MAX_ANGER = 2
VAGUE = 3
"""Fewer content words than this say too little to be called out of scope."""

POPULAR = ("delivery-time", "refund-time", "card-lost")
"""The topics to offer to somebody who has not said what it is about."""
CONTACT = "contact-phone"
"""The topic to answer with when a person is asked for and none is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """What the turns so far amount to.

    Attributes:
        failures: messages in a row that were not understood.
        anger: messages that showed anger.
        offered: the entries that the last clarification offered.
        previous: the user's message before.
    """

    failures: int = 0
    anger: int = 0
    offered: tuple[Entry, ...] = ()
    previous: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one message.

    Attributes:
        matches: the entries to answer with, to draft from, or to offer, the best one first.
        reason: why a person takes over.
        evidence: the best matches that were found, acted upon or not.
    """

    step: Step
    matches: tuple[Match, ...] = ()
    reason: HandoffReason | None = None
    evidence: tuple[Match, ...] = ()


class Policy:
    """Decides on messages, given a knowledge base. Asks no model."""

    def __init__(self, knowledge: Knowledge, matcher: Matcher) -> None:
        self._knowledge = knowledge
        self._matcher = matcher

    def decide(self, state: State, text: str, locale: Locale) -> tuple[Decision, State]:
        """The decision on the next message, and the state after it."""
        requests = self._read(text, locale)
        best = requests[0] if requests else []
        decision, after = self._decide(state, text, locale, requests)
        return dataclasses.replace(decision, evidence=tuple(best)), after

    def _decide(
        self, state: State, text: str, locale: Locale, requests: list[list[Match]]
    ) -> tuple[Decision, State]:
        anger = state.anger + cues.is_angry(text)
        after = State(anger=anger, previous=text)
        if cues.asks_for_person(text):
            return Decision("handoff", reason="requested"), after
        if language.is_foreign(text):
            return Decision("handoff", reason="unsupported_language"), after
        if anger > state.anger and anger >= MAX_ANGER:
            return Decision("handoff", reason="dissatisfied"), after
        picked = cues.ordinal(text)
        if picked is not None and picked < len(state.offered):
            return Decision("answer", (Match(state.offered[picked], 1.0),)), after
        best = requests[0] if requests else []
        is_close = bool(best) and best[0].confidence >= CLOSE
        if not is_close and (courtesy := cues.social(text)):
            if courtesy == "greeting":
                welcome = Decision("welcome", self._popular(locale))
                return welcome, dataclasses.replace(
                    after, failures=state.failures, offered=_entries(welcome)
                )
            return Decision(courtesy), after
        if is_close:
            return Decision("answer", tuple(matches[0] for matches in requests)), after
        if best and best[0].confidence >= GOOD:
            return Decision("draft", tuple(best)), after
        return self._not_understood(state, after, text, locale, best)

    def without_handoff(self, decision: Decision, locale: Locale) -> Decision:
        """What to do instead of a hand-off where nobody can take over."""
        contact = f"{CONTACT}.{locale}"
        if decision.reason in ("requested", "dissatisfied") and contact in self._knowledge:
            match = Match(self._knowledge[contact], 1.0)
            return Decision("answer", (match,), evidence=decision.evidence)
        options = decision.matches or self._popular(locale)
        return Decision("clarify", options[:OPTIONS], decision.reason, decision.evidence)

    def _not_understood(
        self, state: State, after: State, text: str, locale: Locale, best: list[Match]
    ) -> tuple[Decision, State]:
        is_vague = words.amount(text) < VAGUE
        if is_vague and state.previous:
            # "And for a parcel?" makes sense only behind the question before it.
            together = self._look_up(f"{state.previous}\n{text}", locale)
            best = sorted([*best, *together], key=lambda match: -match.confidence)
            best = list({match.entry.id: match for match in reversed(best)}.values())[::-1]
        options = tuple(best[:OPTIONS]) if best and best[0].confidence >= WEAK else ()
        after = dataclasses.replace(after, failures=state.failures + 1)
        if not options and not is_vague:
            return Decision("handoff", reason="out_of_scope"), after
        if after.failures >= MAX_FAILURES:
            return Decision("handoff", options, "low_confidence"), after
        decision = Decision("clarify", options or self._popular(locale))
        return decision, dataclasses.replace(after, offered=_entries(decision))

    def _read(self, text: str, locale: Locale) -> list[list[Match]]:
        """The requests of a message, found in its own language and answered in `locale`."""
        written = language.detect(text) or locale
        return [self._translated(m, locale) for m in self._matcher.read(text, written)]

    def _look_up(self, text: str, locale: Locale) -> list[Match]:
        return self._translated(self._matcher.match(text, language.detect(text) or locale), locale)

    def _translated(self, matches: list[Match], locale: Locale) -> list[Match]:
        return [Match(self._knowledge.translated(m.entry, locale), m.confidence) for m in matches]

    def _popular(self, locale: Locale) -> tuple[Match, ...]:
        ids = [f"{topic}.{locale}" for topic in POPULAR]
        found = [self._knowledge[entry_id] for entry_id in ids if entry_id in self._knowledge]
        entries = found or list(self._knowledge.of(locale)[:OPTIONS])
        return tuple(Match(entry, 0.0) for entry in entries)


def _entries(decision: Decision) -> tuple[Entry, ...]:
    return tuple(match.entry for match in decision.matches)
