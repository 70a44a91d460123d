"""Capabilities: what a server can do, found out by asking it to.

Servers ignore fields that they do not know, so that a field's acceptance says nothing: what
matters for an answer's correctness is tried, with requests of a few tokens, and the answer looked
at. Only what changes the odds of a draw (`top_k` and the like) is taken from the server's kind.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal

from gptflow.engine.openai import dialect
from gptflow.engine.openai.dialect import Dialect
from gptflow.engine.openai.tokens import tokenize
from gptflow.engine.openai.transport import Transport
from gptflow.engine.openai.wire import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    SCHEMA_FIELDS,
    Route,
    SchemaField,
    asking,
    drawn_logprobs,
    echoed_logprobs,
    echoing,
    enforcing,
    likeliest,
    naming,
    next_logprobs,
    text_of,
)
from gptflow.errors import (
    ConfigError,
    GPTFlowError,
    JobTimeout,
    ServerUnavailable,
    UnsupportedHead,
)

Scoring = Literal["token_ids", "echo", "top", ""]
"""How the log-probability of a given token is had: by naming it, by having the prompt echoed
with its log-probabilities, or by asking for the likeliest tokens until it is among them."""

_TOKENS = (11, 12, 13, 14)
"""A prompt to try things with: every vocabulary has this many."""

_SCHEMA = {
    "type": "object",
    "properties": {"q": {"const": "zq"}},
    "required": ["q"],
    "additionalProperties": False,
}

_OTHER_JSON = '{"q": "ab"}\n' * 4
"""A model that is left alone answers this with the same; one that is held to `_SCHEMA`, not. A
small one would fill an answer to a greeting with blank lines, which a grammar allows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one server does.

    Attributes:
        server: its kind and, where it tells, its version.
        context: most tokens in one sequence; 0 where it does not tell.
        completions: it continues plain text.
        chat: it answers chats, with a template of its own.
        token_prompts: it takes token ids as they are.
        streaming: it sends text as it is drawn.
        logprobs: it tells how likely what it drew was.
        scoring: how it tells the likelihood of given tokens; empty if it does not.
        json_schema: per route, the field by which it enforces a schema while decoding.
        tokenize: it counts and lists a text's tokens.
        embeddings: it computes vectors.
        raw_embeddings: also such as are not scaled to length 1.
        n: it draws several continuations of one prompt.
        seed: it draws the same for the same seed.
        adapters: names of the adapters that it serves.
    """

    server: str
    context: int = 0
    completions: bool = False
    chat: bool = False
    token_prompts: bool = False
    streaming: bool = False
    logprobs: bool = False
    scoring: Scoring = ""
    json_schema: Mapping[Route, SchemaField] = dataclasses.field(default_factory=dict)
    tokenize: bool = False
    embeddings: bool = False
    raw_embeddings: bool = False
    n: bool = False
    seed: bool = False
    top_k: bool = False
    min_p: bool = False
    repetition_penalty: bool = False
    ignore_eos: bool = False
    adapters: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `stats` and for people; JSON can carry it."""
        return dataclasses.asdict(self) | {
            "json_schema": bool(self.json_schema),
            "adapters": list(self.adapters),
        }

    def require(self, name: str, *, what: str, hint: str | None = None) -> None:
        """Refuse what the server lacks.

        Raises:
            UnsupportedHead: the capability is missing.
        """
        if not getattr(self, name):
            raise UnsupportedHead(f"{self.server} does not offer {what}.", hint=hint)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that has been looked at: its model, its dialect, what it can do."""

    model: str
    dialect: Dialect
    capabilities: Capabilities


async def probe(transport: Transport, *, model: str | None) -> Server:
    """Find out what a server serves and what it can do.

    Raises:
        ConfigError: `model` is not served, or is missing while several are.
        GPTFlowError: the server cannot be reached or refuses altogether.
    """
    listed = await list_models(transport)
    found = dialect.recognise(listed)
    base = [entry for entry in listed if not entry.get("parent")]
    chosen = _choose(base or listed, model)
    probe_ = _Probe(transport, found, str(chosen["id"]))
    return Server(model=probe_.model, dialect=found, capabilities=await probe_.run(chosen, listed))


async def list_models(transport: Transport) -> list[dict[str, Any]]:
    """What the server says that it serves, adapters included.

    Raises:
        ConfigError: it answers with something else.
    """
    answer = await transport.get("/v1/models")
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(m, dict) and "id" in m for m in data):
        raise ConfigError(
            "The model server's /v1/models is not a list of models.",
            hint="Is GPTFLOW_OPENAI_URL the address of an OpenAI-compatible server?",
        )
    return data


def adapters_of(models: Sequence[Mapping[str, Any]], model: str) -> tuple[str, ...]:
    """The adapters among the listed models that belong to `model`."""
    roots = {entry["id"]: entry.get("root") for entry in models}
    own = {model, roots.get(model)}
    return tuple(str(m["id"]) for m in models if m.get("parent") in own - {None})


def _choose(models: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any]:
    names = ", ".join(str(model["id"]) for model in models) or "none"
    if name is None and len(models) == 1:
        return models[0]
    if name is None:
        raise ConfigError(
            "The model server serves not just one model, and none is chosen.",
            hint=f"Set GPTFLOW_OPENAI_MODEL to one of: {names}.",
        )
    for model in models:
        if model["id"] == name:
            return model
    raise ConfigError(
        f"The model server does not serve {name!r}.",
        hint=f"Set GPTFLOW_OPENAI_MODEL to one of: {names}.",
    )


class _Probe:
    """The requests that find out, a few tokens each."""

    def __init__(self, transport: Transport, dialect_: Dialect, model: str) -> None:
        self._transport = transport
        self._dialect = dialect_
        self.model = model

    async def run(
        self, model: Mapping[str, Any], listed: Sequence[Mapping[str, Any]]
    ) -> Capabilities:
        context, version, completion, chat = await asyncio.gather(
            self._context(model), self._version(), self._completion(), self._chat()
        )
        completions = completion is not None
        usage = (completion or {}).get("usage") or {}
        tokens = usage.get("prompt_tokens") == len(_TOKENS)
        routes: list[Route] = []
        if completions:
            routes.append(COMPLETIONS)
        if chat:
            routes.append(CHAT)
        schema_fields = dict(
            zip(routes, await asyncio.gather(*map(self._json, routes)), strict=True)
        )
        embeddings, raw = await self._embeddings()
        offers = self._dialect.extensions
        return Capabilities(
            server=f"{self._dialect.name} {version}".strip(),
            context=context,
            completions=completions,
            chat=chat,
            token_prompts=tokens,
            streaming=bool(routes) and await self._streams(routes[0]),
            logprobs=completions and bool(drawn_logprobs(completion["choices"][0])),
            scoring=await self._scoring() if tokens else "",
            json_schema={route: field for route, field in schema_fields.items() if field},
            tokenize=await self._works(tokenize(self._transport, self._dialect, self.model, "a b")),
            embeddings=embeddings,
            raw_embeddings=raw,
            n=bool(routes) and await self._several(routes[0]),
            seed=bool(routes) and await self._repeats(routes[0]),
            top_k="top_k" in offers,
            min_p="min_p" in offers,
            repetition_penalty="repetition_penalty" in offers,
            ignore_eos="ignore_eos" in offers,
            adapters=adapters_of(listed, self.model),
        )

    async def _post(self, path: str, **body: Any) -> Any:
        return await self._transport.post(path, {"model": self.model, **body}, "interactive")

    async def _try(self, answer: Awaitable[Any]) -> Any:
        """An answer, or None where the server refuses."""
        try:
            return await answer
        except (ServerUnavailable, JobTimeout, ConfigError):
            raise  # that says nothing about what it can do
        except (GPTFlowError, LookupError, TypeError, AttributeError):
            return None

    async def _works(self, answer: Awaitable[Any]) -> bool:
        return await self._try(answer) is not None

    async def _context(self, model: Mapping[str, Any]) -> int:
        told = model.get("max_model_len") or (model.get("meta") or {}).get("n_ctx")
        if told:
            return int(told)
        if self._dialect is dialect.LLAMA_CPP:
            props = await self._try(self._transport.get("/props")) or {}
            return int((props.get("default_generation_settings") or {}).get("n_ctx") or 0)
        if self._dialect is dialect.SGLANG:
            info = await self._try(self._transport.get("/get_server_info")) or {}
            return int(info.get("context_length") or info.get("max_total_num_tokens") or 0)
        return 0

    async def _version(self) -> str:
        if self._dialect is dialect.VLLM:
            return str((await self._try(self._transport.get("/version")) or {}).get("version", ""))
        if self._dialect is dialect.LLAMA_CPP:
            props = await self._try(self._transport.get("/props")) or {}
            return str(props.get("build_info", ""))
        return ""

    async def _completion(self) -> Any:
        body = {"prompt": list(_TOKENS), "max_tokens": 1, "temperature": 0, "logprobs": 1}
        answer = await self._try(self._post(COMPLETIONS, **body))
        if answer is None:  # perhaps only the ids were refused
            body |= {"prompt": "a"}
            answer = await self._try(self._post(COMPLETIONS, **body))
        if answer is None:
            body.pop("logprobs")
            answer = await self._try(self._post(COMPLETIONS, **body))
        return answer if answer and answer.get("choices") else None

    async def _chat(self) -> bool:
        answer = await self._try(self._post(CHAT, **asking(CHAT), max_tokens=1))
        return bool(answer and answer.get("choices"))

    async def _streams(self, route: Route) -> bool:
        async def first() -> Any:
            body = {"model": self.model, **asking(route), "max_tokens": 1, "stream": True}
            events = self._transport.stream(route, body, "interactive")
            return [event async for event in events]

        return bool(await self._try(first()))

    async def _several(self, route: Route) -> bool:
        answer = await self._try(self._post(route, **asking(route), max_tokens=1, n=2))
        return bool(answer) and len(answer["choices"]) == 2

    async def _repeats(self, route: Route) -> bool:
        """Whether the same seed draws the same, and another one something else."""
        body = asking(route) | {"max_tokens": 8, "temperature": 2.0}
        drawn = [await self._try(self._post(route, **body, seed=seed)) for seed in (7, 7, 8)]
        if None in drawn:
            return False
        same, again, other = (text_of(answer["choices"][0]) for answer in drawn)
        return same == again != other

    async def _json(self, route: Route) -> SchemaField | None:
        for field in SCHEMA_FIELDS:
            answer = await self._try(
                self._post(
                    route,
                    **asking(route, _OTHER_JSON),
                    **enforcing(field, _SCHEMA),
                    max_tokens=64,
                    temperature=0,
                )
            )
            try:
                if json.loads(text_of(answer["choices"][0])) == {"q": "zq"}:
                    return field
            except (ValueError, LookupError, TypeError):
                continue
        return None

    async def _scoring(self) -> Scoring:
        ids = list(_TOKENS)
        named = await self._try(self._post(COMPLETIONS, **naming(ids, [ids[0], ids[1]])))
        if named and set(ids[:2]) <= next_logprobs(named["choices"][0]).keys():
            return "token_ids"
        echoed = await self._try(self._post(COMPLETIONS, **echoing([ids])))
        if echoed and echoed_logprobs(echoed["choices"][0], len(ids)):
            return "echo"
        top = await self._try(self._post(COMPLETIONS, **likeliest(ids, 64)))
        if top and len(next_logprobs(top["choices"][0])) >= 64:
            return "top"
        return ""

    async def _embeddings(self) -> tuple[bool, bool]:
        body: dict[str, Any] = {"input": "a b c"}
        answer = await self._try(self._post(EMBEDDINGS, **body))
        if not answer or not answer.get("data"):
            return False, False
        if not self._dialect.raw_embedding:
            return True, False
        raw = await self._try(self._post(EMBEDDINGS, **body, **self._dialect.raw_embedding))
        if not raw or not raw.get("data"):
            return True, False
        length = math.hypot(*raw["data"][0]["embedding"])
        return True, not math.isclose(length, 1.0, rel_tol=1e-3)
