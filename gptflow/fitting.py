"""Fitting prompts into the model's context: by the prompt's stated rule, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptflow.errors import InputTooLong
from gptflow.heads import Choose, Generate, Head, Json, Score
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Engine

_SMALL = 16_384
"""Characters that are tokenised in a few milliseconds."""

_PER_TURN = 16
"""More tokens than any chat format spends on one turn."""


def room(engine: Engine, head: Head) -> int:
    """How many tokens the prompt may take, so that the head's answer fits behind it."""
    context = engine.model.context
    match head:
        case Generate(max_tokens=wanted) | Json(max_tokens=wanted):
            return max(context - wanted, context // 2)
        case Choose():
            return context - max(len(text.encode()) for text in head.texts) - 1
        case Score(yes=yes, no=no):
            return context - max(len(yes.encode()), len(no.encode())) - 1
        case _:
            return context


def fits(engine: Engine, head: Head, rendered: RenderedPrompt) -> bool:
    """Whether the prompt leaves room for the head's answer."""
    limit = room(engine, head)
    # No token is shorter than a byte, so most prompts need not be tokenised to know.
    most = sum(len(m.text.encode()) + _PER_TURN for m in rendered.messages) + _PER_TURN
    return most <= limit or engine.count_tokens(rendered) <= limit


def require(engine: Engine, head: Head, rendered: RenderedPrompt, task: str) -> None:
    """Refuse a prompt that does not fit.

    Raises:
        InputTooLong: with both token counts.
    """
    if not fits(engine, head, rendered):
        raise InputTooLong(
            f"The prompt of task {task!r} takes {engine.count_tokens(rendered)} tokens; "
            f"{room(engine, head)} fit.",
            hint="Shorten the input.",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits, and the variables it was made with.

    Attributes:
        variables: with the part that was kept of the one that gave way.
        truncated: whether anything was cut off.
    """

    prompt: RenderedPrompt
    variables: Mapping[str, Any]
    truncated: bool = False


def fit(
    engine: Engine, head: Head, prompt: Prompt | str, variables: Mapping[str, Any], task: str
) -> Fitted:
    """Fill in the prompt, shortening the variable that gives way if it does not fit.

    A plain string is the user's text, and is never shortened.

    Counting a megabyte's tokens takes half a second: call it off the event loop where
    `is_small` says so.

    Raises:
        InputTooLong: nothing may be shortened, or all of it would not be enough.
    """
    if isinstance(prompt, str):
        require(engine, head, plain := RenderedPrompt.plain(prompt), task)
        return Fitted(plain, variables)
    rendered = prompt.render(variables)
    field = prompt.truncate
    if field is None or not isinstance(variables.get(field), str):
        require(engine, head, rendered, task)
        return Fitted(rendered, variables)
    if fits(engine, head, rendered):
        return Fitted(rendered, variables)
    text = variables[field].strip()  # a part that is all blanks might render to nothing

    def shorten(length: int) -> Fitted:
        part = text[:length] if prompt.keep == "start" else text[len(text) - length :]
        shorter = {**variables, field: part}
        return Fitted(prompt.render(shorter), shorter, truncated=True)

    best = shorten(1)
    require(engine, head, best.prompt, task)
    # Even repetitive text rarely packs more than 32 characters in a token; trying no more
    # than that keeps a megabyte of input from being tokenised over and over.
    low, high = 2, min(len(text), 32 * room(engine, head))
    while low <= high:
        middle = (low + high) // 2
        candidate = shorten(middle)
        if fits(engine, head, candidate.prompt):
            best, low = candidate, middle + 1
        else:
            high = middle - 1
    return best


def is_small(prompt: Prompt | str, variables: Mapping[str, Any]) -> bool:
    """Whether a prompt of these variables takes no time worth mentioning to fit."""
    own = len(prompt) if isinstance(prompt, str) else 0
    return own + sum(len(v) for v in variables.values() if isinstance(v, str)) < _SMALL
