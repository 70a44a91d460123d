"""Masking: rows with their personal data taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptflow.training.data import personal_data
from gptflow.training.data.rows import Dialogue, Preference, Row, TaggedText, Turn
from gptflow.training.data.tokens import align


def masked(row: Row) -> Row:
    """The row with `<email>`, `<card>` and so on in place of personal data.

    Of a tagged text it is masked token by token, as a tag belongs to each: what is spread over
    several tokens stays, and `gptflow data check` still finds it.
    """
    if isinstance(row, TaggedText):
        words = tuple(personal_data.mask(word) for word in row.words)
        if words == row.words:
            return row
        text, tokens = align(words)
        return dataclasses.replace(row, text=text, tokens=tokens)
    if isinstance(row, Dialogue):
        turns = tuple(Turn(turn.role, personal_data.mask(turn.text)) for turn in row.turns)
        return dataclasses.replace(row, turns=turns)
    texts: dict[str, Any] = {
        name: personal_data.mask(getattr(row, name))
        for name in ("text", "query", "candidate", "prompt", "chosen", "rejected")
        if hasattr(row, name)
    }
    if isinstance(row, Preference):
        texts["before"] = tuple(Turn(t.role, personal_data.mask(t.text)) for t in row.before)
        texts["input"] = _masked(row.input)
    return dataclasses.replace(row, **texts)


def _masked(value: Any) -> Any:
    """JSON with every text in it masked."""
    if isinstance(value, str):
        return personal_data.mask(value)
    if isinstance(value, Mapping):
        return {name: _masked(each) for name, each in value.items()}
    return [_masked(each) for each in value] if isinstance(value, list) else value
