"""The wire: bodies of requests, and what is read out of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Route = Literal["/v1/completions", "/v1/chat/completions"]
COMPLETIONS: Route = "/v1/completions"
CHAT: Route = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

SchemaField = Literal["response_format", "structured_outputs", "guided_json", "json_schema"]
SCHEMA_FIELDS: tuple[SchemaField, ...] = (
    "response_format",  # OpenAI's own
    "structured_outputs",  # vLLM
    "guided_json",  # vLLM before 0.12
    "json_schema",  # llama.cpp
)

_ONE_TOKEN = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
"""Temperature 1 and no limits: log-probabilities as the model has them, whatever a server
reports them after."""

_NAMED = "token_id:"


def asking(route: Route, text: str = "Hello") -> dict[str, Any]:
    """The prompt of a request by one of the routes."""
    if route == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text}


def enforcing(field: SchemaField, schema: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a server enforce a JSON schema while decoding."""
    match field:
        case "response_format":
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case "structured_outputs":
            return {"structured_outputs": {"json": schema}}
        case _:
            return {field: schema}


def naming(ids: Sequence[int], tokens: Sequence[int]) -> dict[str, Any]:
    """Ask for the log-probabilities of `tokens` as what follows `ids`."""
    return _ONE_TOKEN | {
        "prompt": list(ids),
        "logprobs": 1,
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
    }


def likeliest(ids: Sequence[int], count: int) -> dict[str, Any]:
    """Ask for the likeliest tokens after `ids`, with their log-probabilities."""
    return _ONE_TOKEN | {"prompt": list(ids), "logprobs": count}


def echoing(prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Ask for the log-probability of each of the prompts' own tokens."""
    return _ONE_TOKEN | {"prompt": [list(ids) for ids in prompts], "logprobs": 1, "echo": True}


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a choice, or of a piece of one, by either route."""
    message = choice.get("message") or choice.get("delta")
    return str((choice.get("text") if message is None else message.get("content")) or "")


def drawn_logprobs(choice: Mapping[str, Any]) -> list[float]:
    """Log-probabilities of the drawn tokens; empty where the server does not tell."""
    content = _content(choice)
    if content is not None:
        return [float(token["logprob"]) for token in content]
    return [float(v) for v in (choice.get("logprobs") or {}).get("token_logprobs") or ()]


def drawn_tokens(choice: Mapping[str, Any]) -> list[int]:
    """Ids of the drawn tokens; empty where the server does not tell."""
    if choice.get("token_ids") is not None:
        return [int(token) for token in choice["token_ids"]]
    return [int(token["id"]) for token in _content(choice) or () if "id" in token]


def _content(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The drawn tokens, where they come as a list of objects.

    llama.cpp lists the token that ended the answer too, as one without text.
    """
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    return [t for t in content if t.get("token") != "" or t.get("bytes") != []]


def next_logprobs(choice: Mapping[str, Any]) -> dict[int, float]:
    """By token id, the log-probabilities that `naming` or `likeliest` asked for."""
    logprobs = choice.get("logprobs") or {}
    if content := logprobs.get("content"):
        return {int(t["id"]): float(t["logprob"]) for t in content[0]["top_logprobs"] if "id" in t}
    steps: Sequence[Mapping[str, float]] = logprobs.get("top_logprobs") or ()
    return {
        int(name.removeprefix(_NAMED)): float(value)
        for step in steps[:1]
        for name, value in step.items()
        if name.startswith(_NAMED)
    }


def echoed_logprobs(choice: Mapping[str, Any], length: int) -> list[float] | None:
    """Per token of a prompt of `length` tokens its log-probability, the first one's being 0.

    None where the answer is not what `echoing` asked for.
    """
    values = (choice.get("logprobs") or {}).get("token_logprobs") or ()
    if len(values) != length + 1 or None in values[1:length]:
        return None
    return [0.0, *map(float, values[1:length])]
