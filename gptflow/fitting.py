"""Fitting prompts into the model's context: by the prompt's stated rule, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gptflow.errors import InputTooLong
from gptflow.heads import Choose, Generate, Head, Json, Score
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Engine

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


async def render(
    engine: Engine, head: Head, prompt: Prompt, variables: Mapping[str, Any], task: str
) -> tuple[RenderedPrompt, bool]:
    """Fill in the prompt, shortening the variable that gives way if it does not fit.

    Returns:
        The prompt, and whether anything was cut off.

    Raises:
        InputTooLong: nothing may be shortened, or all of it would not be enough.
    """
    rendered = prompt.render(variables)
    field = prompt.truncate
    if field is None or not isinstance(variables.get(field), str):
        require(engine, head, rendered, task)
        return rendered, False
    if fits(engine, head, rendered):
        return rendered, False
    require(engine, head, prompt.render({**variables, field: variables[field].strip()[:1]}), task)
    shortened = await asyncio.to_thread(_shorten, engine, head, prompt, variables, field)
    return shortened, True


def _shorten(
    engine: Engine, head: Head, prompt: Prompt, variables: Mapping[str, Any], field: str
) -> RenderedPrompt:
    """The prompt with as much of `field` as fits, found by bisection."""
    text = str(variables[field]).strip()  # a part that is all blanks might render to nothing
    best = prompt.render({**variables, field: text[:1]})
    # Even repetitive text rarely packs more than 32 characters in a token; trying no more
    # than that keeps a megabyte of input from being tokenised over and over.
    low, high = 1, min(len(text), 32 * room(engine, head))
    while low <= high:
        middle = (low + high) // 2
        part = text[:middle] if prompt.keep == "start" else text[len(text) - middle :]
        candidate = prompt.render({**variables, field: part})
        if fits(engine, head, candidate):
            best, low = candidate, middle + 1
        else:
            high = middle - 1
    return best
