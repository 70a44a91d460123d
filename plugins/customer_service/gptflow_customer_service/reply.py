"""`customer.reply`: the next thing to say in a conversation with a customer."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from pathlib import Path
from typing import cast

from gptflow.concurrency import gather
from gptflow.heads import Raw
from gptflow.prompt import Prompt
from gptflow.task import Context, Setup, Task
from gptflow_customer_service import cues, extraction, grounding, intents
from gptflow_customer_service.handoff import build_handoff
from gptflow_customer_service.heard import Heard
from gptflow_customer_service.knowledge import Knowledge, Locale
from gptflow_customer_service.matching import Match, Matcher
from gptflow_customer_service.messages import MESSAGES
from gptflow_customer_service.policy import Decision, Policy, State
from gptflow_customer_service.schema import (
    Answer,
    AnswerMode,
    Citation,
    Clarification,
    Conversation,
    GroundingReport,
    Intent,
    Reply,
)

PASSAGES = 2
"""How many entries a generated answer may cite. A quoted one is always of the best."""
ANSWER_TOKENS = 96
RECENT = 12
"""Messages of the user's that are decided on, the last one after those that led to it. Of
earlier ones only anger counts: two messages that are not understood end in a hand-off."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An answer with what it rests on."""

    answer: Answer
    citations: list[Citation]
    grounding: GroundingReport


class CustomerReply(Task[Conversation, Raw, Reply]):
    """Answer a customer from the knowledge base, ask back, or hand over to a person.

    Args:
        knowledge: a JSONL file of `knowledge.Entry` rows; by default the one shipped.
    """

    name = "customer.reply"
    intent_prompt = Prompt.file("intent.j2", truncate="message", keep="end")
    answer_prompt = Prompt.file("answer.j2", truncate="question", keep="end")

    def __init__(self, knowledge: Path | None = None) -> None:
        self._path = knowledge

    def setup(self, ctx: Setup) -> None:
        """Read the knowledge base and index it."""
        _ = self._policy

    @functools.cached_property
    def _policy(self) -> Policy:
        knowledge = Knowledge.load(self._path or self.directory / "knowledge.jsonl")
        return Policy(knowledge, Matcher(knowledge))

    async def run(self, input: Conversation, ctx: Context) -> Reply:
        # Reading a long conversation takes a while and needs no event loop.
        heard = await asyncio.to_thread(Heard.of, input)
        decision = await asyncio.to_thread(self._decide, heard)
        intent, found = await self._ask(heard, decision, ctx)
        if decision.step == "draft" and found is None:
            decision = dataclasses.replace(decision, step="handoff", reason="unsupported_answer")
        if decision.step == "handoff" and not input.handoff_enabled:
            decision = self._policy.without_handoff(decision, heard.last.locale)
            found = _verbatim(decision) if decision.step == "answer" else None
        if decision.step == "handoff" and decision.reason in _ABSTAINED:
            ctx.abstain(f"{decision.reason}: {_ABSTAINED[decision.reason]}")
        return _reply(input, heard, decision, intent, found)

    def _decide(self, heard: Heard) -> Decision:
        state, decision = State(), Decision("welcome")
        for message in heard.messages[:-RECENT]:
            anger = 0 if message.after_agent else state.anger
            state = State(anger=anger + cues.is_angry(message.plain), previous=message.plain)
        for message in heard.messages[-RECENT:]:
            before = State() if message.after_agent else state
            decision, state = self._policy.decide(before, message.plain, message.locale)
        return decision

    async def _ask(
        self, heard: Heard, decision: Decision, ctx: Context
    ) -> tuple[Intent, Found | None]:
        intent, answer = self._intent(heard, decision, ctx), self._answer(heard, decision, ctx)
        return cast(tuple[Intent, Found | None], tuple(await gather(intent, answer)))

    async def _intent(self, heard: Heard, decision: Decision, ctx: Context) -> Intent:
        if decision.reason == "requested":
            return intents.certain("human")
        if decision.step in ("welcome", "thanks", "goodbye"):
            return intents.certain("greeting" if decision.step == "welcome" else decision.step)
        chosen = await ctx.choose(
            self.intent_prompt,
            {"message": heard.last.text},
            labels=tuple(intents.TOPICS),
            verbalizers=intents.TOPICS,
        )
        return intents.combine(chosen.probs, decision.evidence)

    async def _answer(self, heard: Heard, decision: Decision, ctx: Context) -> Found | None:
        if decision.step == "answer":
            return _verbatim(decision)
        if decision.step == "draft":
            return await self._draft(heard.last.plain, heard.last.locale, decision.matches, ctx)
        return None

    async def _draft(
        self, question: str, locale: Locale, matches: tuple[Match, ...], ctx: Context
    ) -> Found | None:
        """An answer from the best passages.

        Quoted where a sentence is plainly about the question, else generated and checked,
        else the nearest sentence, else none.
        """
        cited = matches[:PASSAGES]
        passages = [match.entry.answer for match in cited]
        extract = await asyncio.to_thread(extraction.best_sentence, question, passages[0])
        if extract is None or extract.score < extraction.PLAIN:
            # Not streamed: nobody may read an answer before it is checked.
            raw = await ctx.generate(
                self.answer_prompt,
                {"passages": "\n".join(passages), "question": question, "locale": locale},
                max_tokens=ANSWER_TOKENS,
            )
            checked = grounding.check(raw.text, passages)
            if checked.ok and raw.continuations[0].finish == "stop":
                return _found(raw.text.strip(), "generated", cited, checked)
        if extract is None:
            return None
        checked = grounding.check(extract.sentence, passages)
        return _found(extract.sentence, "extractive", cited, checked)


_ABSTAINED = {
    "low_confidence": "no entry of the knowledge base is likely enough",
    "out_of_scope": "the knowledge base says nothing about it",
    "unsupported_answer": "the drafted answer is not supported by the passages found",
}


def _verbatim(decision: Decision) -> Found:
    """The stored answers word for word; several requests get theirs one below the other."""
    entries = [match.entry for match in decision.matches]
    text = "\n\n".join(entry.answer for entry in entries)
    return Found(
        Answer(text=text, mode="faq", answer_id=entries[0].id),
        [
            Citation(doc_id=match.entry.id, quote=match.entry.answer, score=match.confidence)
            for match in decision.matches
        ],
        GroundingReport(supported_ratio=1.0, unsupported=[]),
    )


def _found(
    text: str, mode: AnswerMode, cited: tuple[Match, ...], checked: grounding.Grounding
) -> Found:
    citations = [
        Citation(doc_id=cited[index].entry.id, quote=quote, score=cited[index].confidence)
        for index, quote in checked.quotes
    ]
    return Found(
        Answer(text=text, mode=mode, answer_id=citations[0].doc_id),
        citations,
        GroundingReport(
            supported_ratio=checked.supported_ratio, unsupported=list(checked.unsupported)
        ),
    )


def _reply(
    input: Conversation, heard: Heard, decision: Decision, intent: Intent, found: Found | None
) -> Reply:
    messages = MESSAGES[heard.last.locale]
    reply = Reply(
        action="close", message="", intent=intent, locale=heard.last.locale, pii=dict(heard.pii)
    )
    match decision.step:
        case "answer" | "draft":
            assert found is not None
            reply.action, reply.message = "answer", found.answer.text
            reply.answer, reply.grounding = found.answer, found.grounding
            reply.citations = found.citations
        case "clarify" | "welcome":
            options = [match.entry.question for match in decision.matches]
            is_guess = any(match.confidence > 0 for match in decision.matches)
            question = messages.which if is_guess else messages.rephrase
            if decision.reason is not None:
                question = messages.cannot
            if decision.step == "welcome":
                question = messages.welcome
            reply.action, reply.message = "clarify", question
            reply.clarification = Clarification(question=question, options=options)
        case "handoff":
            assert decision.reason is not None
            handoff = build_handoff(decision.reason, intent, heard, input.session_id)
            reply.action, reply.message, reply.handoff = "handoff", handoff.message, handoff
        case "thanks":
            reply.message = messages.thanks
        case "goodbye":
            reply.message = messages.goodbye
    return reply
