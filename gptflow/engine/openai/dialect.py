"""Dialects: what servers call the things that OpenAI's API has no word for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Extension = Literal["top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One kind of server.

    Attributes:
        name: of the server, for people.
        owner: what its list of models gives as `owned_by`.
        extensions: its names for what only some servers have.
        all_tokens: the value of `top_k` that means no limit.
        always: sent with every request that draws tokens, so that a server's own defaults do
            not change what is drawn.
        penalty_window: the field that says how far back the repetition penalty looks, where
            that is not as far as there are tokens.
        continues: sent where a chat's last message is the start of the answer; None where
            the server cannot go on with one.
        raw_embedding: asks for a vector that is not scaled to length 1.
        salt: the field that keeps tenants apart in the prefix cache.
    """

    name: str
    owner: str = ""
    extensions: Mapping[Extension, str] = dataclasses.field(default_factory=dict)
    all_tokens: int = 0
    always: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    penalty_window: str | None = None
    continues: Mapping[str, Any] | None = None
    raw_embedding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    salt: str | None = None


_CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}

VLLM = Dialect(
    name="vLLM",
    owner="vllm",
    extensions={
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "ignore_eos": "ignore_eos",
        "stop_token_ids": "stop_token_ids",
    },
    always={"return_token_ids": True},
    continues=_CONTINUES,
    raw_embedding={"use_activation": False},
    salt="cache_salt",
)
SGLANG = Dialect(
    name="SGLang",
    owner="sglang",
    extensions=VLLM.extensions,
    all_tokens=-1,
    continues={"continue_final_message": True},
)
LLAMA_CPP = Dialect(
    name="llama.cpp",
    owner="llamacpp",
    extensions={
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
        "ignore_eos": "ignore_eos",
    },
    # The order in which GPTFlow's own sampler applies them.
    always={"samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"]},
    penalty_window="repeat_last_n",
    raw_embedding={"embd_normalize": -1},
)
PLAIN = Dialect(name="OpenAI-compatible server")


def recognise(models: Sequence[Mapping[str, Any]]) -> Dialect:
    """The dialect of the server whose list of models this is; `PLAIN` if nothing gives it away."""
    owners = {str(model.get("owned_by", "")).lower() for model in models}
    return next((d for d in (VLLM, SGLANG, LLAMA_CPP) if d.owner in owners), PLAIN)
