"""Refusals: an HTTP server's errors as GPTFlow's own.

A server's message may quote the prompt, so none of its words are passed on, but for the error's
type where it is a plain identifier.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gptflow.errors import (
    ConfigError,
    EngineError,
    GPTFlowError,
    InputTooLong,
    InvalidGrammar,
    ServerUnavailable,
    StepFailed,
    UnsupportedHead,
)

_TOO_LONG = re.compile(
    r"context (length|size|window)|exceed_context|max_model_len|too long|longer than", re.I
)
_GRAMMAR = re.compile(r"grammar|json.?schema|structured.?output|guided|response_format", re.I)
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z_]{0,63}")

BUSY = frozenset({429, 503})
"""Statuses that say: not now."""


def refusal(status: int, body: bytes, *, path: str) -> GPTFlowError:
    """The error that an answer with a status other than 200 stands for."""
    error = _error(body)
    kind = str(error.get("type", ""))
    named = f"HTTP {status}" + (f", {kind}" if _IDENTIFIER.fullmatch(kind) else "")
    text = f"{kind} {error.get('message', '')}"
    match status:
        case 401 | 403:
            return ConfigError(
                f"The model server wants another API key ({named}).",
                hint="Set GPTFLOW_OPENAI_API_KEY.",
            )
        case 404 | 405:
            return EngineError(
                f"The model server has no {path}, or no such model ({named}).",
                hint="`gptflow doctor` shows what it serves.",
            )
        case 501:
            return UnsupportedHead(f"The model server does not implement {path} ({named}).")
        case _ if status in BUSY:
            return ServerUnavailable(f"The model server is overloaded ({named}).")
        case _ if 300 <= status < 400:
            return ConfigError(
                f"The model server redirects to another address ({named}).",
                hint="Set GPTFLOW_OPENAI_URL to that address.",
            )
        case _ if status >= 500:
            return StepFailed(f"The model server failed ({named}).")
    if _TOO_LONG.search(text):
        return InputTooLong(
            f"The model server finds the prompt too long ({named}).", hint="Shorten the input."
        )
    if _GRAMMAR.search(text):
        return InvalidGrammar(f"The model server cannot enforce the schema ({named}).")
    return EngineError(f"The model server refused the request ({named}).")


def _error(body: bytes) -> dict[str, Any]:
    """The error's description; servers put it under `error`, or send it bare."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    inner = parsed.get("error", parsed) if isinstance(parsed, dict) else {}
    return inner if isinstance(inner, dict) else {"message": str(inner)}
