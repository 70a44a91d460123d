"""Generation: text and JSON, drawn by the server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from gptflow.engine.openai import dialect as dialects
from gptflow.engine.openai.caller import Caller
from gptflow.engine.openai.tokens import Payload, at_most
from gptflow.engine.openai.wire import (
    CHAT,
    drawn_logprobs,
    drawn_tokens,
    enforcing,
    text_of,
)
from gptflow.errors import EngineError, InvalidGrammar, UnsupportedHead
from gptflow.heads import Continuation, Generate, Generated, Json, Parsed, Usage
from gptflow.request import Delta

_COLDEST = 0.01
"""Below this temperature the likeliest token is taken each time."""


@dataclasses.dataclass(slots=True)
class Draft:
    """One continuation as it arrives."""

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish: str | None = None
    stop_reason: Any = None

    def add(self, choice: Mapping[str, Any]) -> str:
        """Take a choice, or a piece of one; returns its text."""
        piece = text_of(choice)
        self.text += piece
        self.tokens += drawn_tokens(choice)
        self.logprobs += drawn_logprobs(choice)
        self.finish = choice.get("finish_reason") or self.finish
        self.stop_reason = choice.get("stop_reason", self.stop_reason)
        return piece

    def continuation(
        self, end_ids: frozenset[int], *, told: bool, every: bool = False
    ) -> Continuation:
        """The whole of it, without the token that ended it.

        Args:
            end_ids: tokens that end an answer, as far as they are known.
            told: the server names the string that ended it, so that where it names none, it
                was a token.
            every: list the log-probability of every token.
        """
        ended = self.finish == "stop" and bool(self.tokens)
        by_token = ended and (
            self.tokens[-1] in end_ids or (told and not isinstance(self.stop_reason, str))
        )
        keep = len(self.tokens) - by_token
        logprobs = self.logprobs[:keep] if self.tokens else self.logprobs
        return Continuation(
            text=self.text,
            tokens=tuple(self.tokens[:keep]),
            mean_logprob=sum(logprobs) / len(logprobs) if logprobs else 0.0,
            logprobs=tuple(logprobs) if every else (),
            finish="length" if self.finish == "length" else "stop",
        )


async def generate(caller: Caller, head: Generate, tell: Callable[[Delta], object]) -> Generated:
    """`Generate`'s answer.

    Raises:
        UnsupportedHead: the server lacks something that the head sets.
        GPTFlowError: what the server answered.
    """
    if head.logprobs:
        caller.can.require("logprobs", what="log-probabilities", hint="Leave logprobs out.")
    payload = caller.tokens.payload(caller.request.prompt)
    limit = await _limit(caller, payload, head.max_tokens)
    body = {
        **payload.fields,
        **_drawing(caller, payload, head),
        "max_tokens": limit,
        "temperature": head.temperature if head.temperature >= _COLDEST else 0.0,
        "top_p": head.top_p,
    }
    if stop := head.stop + payload.stop:
        body["stop"] = list(stop)
    if head.n == 1 or caller.can.n:
        parts = [await _draw(caller, payload, body, head.n, 0, tell)]
    else:
        tasks = [_draw(caller, payload, body, 1, sample, tell) for sample in range(head.n)]
        parts = list(await asyncio.gather(*tasks))
    end_ids, told = caller.tokens.end_ids, caller.server.dialect is dialects.VLLM
    return Generated(
        continuations=tuple(
            draft.continuation(end_ids, told=told, every=head.logprobs)
            for drafts, _ in parts
            for draft in drafts
        ),
        usage=sum((usage for _, usage in parts), Usage()),
    )


async def structured(caller: Caller, head: Json) -> Parsed:
    """`Json`'s answer, checked against the schema.

    Raises:
        UnsupportedHead: the server enforces no schema on this kind of prompt.
        InvalidGrammar: the schema is malformed, or the server cannot enforce it.
        EngineError: the answer was cut off, or does not fit the schema.
    """
    import jsonschema

    schema = head.json_schema
    try:
        checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        checker.check_schema(schema)
        json.dumps(schema)
    except (jsonschema.SchemaError, TypeError, ValueError) as error:
        raise InvalidGrammar(f"The schema cannot be enforced: {type(error).__name__}.") from None
    payload = caller.tokens.payload(caller.request.prompt)
    field = caller.can.json_schema.get(payload.route)
    if field is None:
        raise UnsupportedHead(
            f"{caller.can.server} enforces no JSON schema at {payload.route}.",
            hint=None
            if not caller.can.json_schema
            else f"It does at {next(iter(caller.can.json_schema))}.",
        )
    greedy = Generate(max_tokens=head.max_tokens, temperature=head.temperature)
    body = {
        **payload.fields,
        **_drawing(caller, payload, greedy),
        **enforcing(field, schema),
        "max_tokens": await _limit(caller, payload, head.max_tokens),
        "temperature": head.temperature if head.temperature >= _COLDEST else 0.0,
        "top_p": 1.0,
    }
    drafts, usage = await _draw(caller, payload, body, 1, 0, None)
    try:
        # A value may be whole although the model then wrote blank lines up to the limit.
        value = json.loads(drafts[0].text)
    except ValueError:
        if drafts[0].finish != "length":
            raise _unfit(caller) from None
        raise EngineError(
            f"The JSON value was not complete after {usage.tokens_out} tokens.",
            hint="Raise max_tokens, or bound the schema's strings and lists.",
        ) from None
    try:
        checker(schema).validate(value)
    except jsonschema.ValidationError:
        raise _unfit(caller) from None
    return Parsed(value=value, text=drafts[0].text, usage=usage)


def _unfit(caller: Caller) -> EngineError:
    return EngineError(
        f"{caller.can.server} answered with something that does not fit the schema.",
        hint="It may not enforce this schema's keywords; use simpler ones.",
    )


async def _draw(
    caller: Caller,
    payload: Payload,
    body: Mapping[str, Any],
    n: int,
    first: int,
    tell: Callable[[Delta], object] | None,
) -> tuple[list[Draft], Usage]:
    """Draw `n` continuations, the first one being the request's number `first`."""
    asked = {**body, "seed": _seed(caller.request.seed + first)}
    if n > 1:
        asked["n"] = n
    drafts = [Draft() for _ in range(n)]
    usage: Mapping[str, Any] = {}
    streams = tell is not None and caller.request.on_delta is not None and caller.can.streaming
    if streams:
        async for event in caller.stream(payload.route, asked):
            _take(event, drafts, first, tell)
            usage = event.get("usage") or usage
    else:
        answer = await caller.post(payload.route, asked)
        _take(answer, drafts, first, tell)
        usage = answer.get("usage") or {}
    if any(draft.finish is None for draft in drafts):
        raise EngineError("The model server's answer is not complete.")
    details = usage.get("prompt_tokens_details") or {}
    seen = sum(len(draft.tokens) for draft in drafts)
    return drafts, Usage(
        tokens_in=int(usage.get("prompt_tokens") or payload.tokens or 0),
        # llama.cpp counts one continuation's only.
        tokens_out=max(int(usage.get("completion_tokens") or 0), seen),
        cached=int(details.get("cached_tokens") or 0),
    )


def _take(
    event: Mapping[str, Any],
    drafts: list[Draft],
    first: int,
    tell: Callable[[Delta], object] | None,
) -> None:
    try:
        for choice in event.get("choices") or ():
            index = int(choice.get("index", 0))
            if (piece := drafts[index].add(choice)) and tell is not None:
                tell(Delta(piece, first + index))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise EngineError("The model server's answer is not what OpenAI's API says.") from None


def _drawing(caller: Caller, payload: Payload, head: Generate) -> dict[str, Any]:
    """The fields, besides OpenAI's own, that make the server draw as the head says."""
    dialect, can = caller.server.dialect, caller.can
    wanted: dict[dialects.Extension, Any] = {
        "top_k": head.top_k or dialect.all_tokens,
        "min_p": head.min_p,
        "repetition_penalty": head.repetition_penalty,
        "ignore_eos": caller.request.ignore_eos,
    }
    neutral = {
        "top_k": dialect.all_tokens,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": False,
    }
    for name, value in wanted.items():
        if value != neutral[name]:
            can.require(name, what=name, hint="Leave it at its default.")
    fields = {
        dialect.extensions[name]: value
        for name, value in wanted.items()
        if name in dialect.extensions
    }
    if head.repetition_penalty != 1 and dialect.penalty_window is not None:
        fields[dialect.penalty_window] = caller.context
    ends = frozenset() if caller.request.ignore_eos else caller.tokens.end_ids
    if ends and "stop_token_ids" in dialect.extensions:
        fields[dialect.extensions["stop_token_ids"]] = sorted(ends)
    if can.logprobs:
        chat = payload.route == CHAT
        fields |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
    return dict(dialect.always) | fields


async def _limit(caller: Caller, payload: Payload, wanted: int) -> int:
    """The most tokens to draw: what was asked for, as far as the context holds it."""
    prompt = caller.request.prompt
    tokens = payload.tokens
    if not caller.context:
        return wanted
    if tokens is None and not isinstance(prompt, tuple):
        if at_most(prompt) + wanted <= caller.context:
            return wanted
        tokens = await caller.tokens.count(prompt)
        if not caller.can.tokenize and tokens == at_most(prompt):
            # Nobody can count: let the server judge, with what was asked for.
            return wanted
    assert tokens is not None
    caller.require_room(tokens, 1)
    return min(wanted, caller.context - tokens)


def _seed(seed: int) -> int:
    """A request's seed in the range that every server takes; llama.cpp's is the narrowest."""
    return seed % (2**31 - 1)
