"""Embedding: vectors from `/v1/embeddings`."""

from __future__ import annotations

import math

from gptflow.engine.openai.caller import Caller
from gptflow.engine.openai.tokens import NO_TOKENIZER, plain_text
from gptflow.engine.openai.wire import EMBEDDINGS
from gptflow.errors import EngineError, UnsupportedHead
from gptflow.heads import Embed, Embedded, Pooling, Usage


async def embed(caller: Caller, head: Embed, pooling: Pooling | None) -> Embedded:
    """`Embed`'s answer.

    Args:
        pooling: how the server was told to pool; no server says so itself.

    Raises:
        UnsupportedHead: the server computes no vectors, or pools in another way.
    """
    can = caller.can
    can.require(
        "embeddings",
        what="/v1/embeddings",
        hint="vLLM needs --runner pooling, llama.cpp --embedding.",
    )
    if pooling != head.pooling:
        raise UnsupportedHead(
            f"The task wants {head.pooling!r} pooling, and "
            + (f"{can.server} pools by {pooling!r}." if pooling else "nobody says how it pools."),
            hint=f"Start it with {head.pooling} pooling and set GPTFLOW_OPENAI_POOLING.",
        )
    body = {}
    if not head.normalize:
        can.require("raw_embeddings", what="vectors that are not scaled to length 1")
        body = dict(caller.server.dialect.raw_embedding)
    payload = await _input(caller)
    answer = await caller.post(EMBEDDINGS, {"input": payload, **body})
    try:
        vector = [float(x) for x in answer["data"][0]["embedding"]]
    except (LookupError, TypeError, ValueError):
        raise EngineError("The model server's answer holds no vector.") from None
    length = math.hypot(*vector)
    if not math.isfinite(length):
        raise EngineError("The model's output for this request is not a number.")
    if head.normalize and length:
        vector = [x / length for x in vector]
    tokens = int((answer.get("usage") or {}).get("prompt_tokens") or 0)
    return Embedded(vector=tuple(vector), usage=Usage(tokens_in=tokens))


async def _input(caller: Caller) -> list[int] | str:
    """The prompt as token ids, or as text where nobody knows its tokens."""
    prompt = caller.request.prompt
    if not isinstance(prompt, tuple) and not caller.tokens.knows(prompt):
        if prompt.is_chat:
            raise UnsupportedHead("A chat can be embedded only as token ids.", hint=NO_TOKENIZER)
        return plain_text(prompt)
    ids = await caller.tokens.ids(prompt, caller.request.job_class)
    caller.require_room(len(ids), 0)
    return list(ids)
