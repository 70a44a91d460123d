"""Dialogues whose turns are rows of their own: one turn a line, told apart by a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gptflow.training.data.fields import CONVERSATIONS, TEXTS, check_turns, role_of
from gptflow.training.data.problem import Problem
from gptflow.training.data.records import Record
from gptflow.training.data.rows import Dialogue, Origin, Turn
from gptflow.training.data.source import Source

ROLES = ("role", "speaker", "from")


def from_turns(records: Iterable[Record | Problem], source: Source) -> Iterator[Dialogue | Problem]:
    """Conversations out of a table of turns, in the table's order.

    A conversation of which a turn cannot be used is no row, and the turn is reported. Its
    `group` is the conversation's number, so that its turns never part.
    """
    turns: dict[str, list[Turn]] = {}
    origins: dict[str, Origin] = {}
    spoilt: set[str] = set()
    for found in records:
        if isinstance(found, Problem):
            yield found
            continue
        origin, record = found
        name = _first(record, CONVERSATIONS)
        if not isinstance(name, str | int) or name == "":
            message = f"one of {', '.join(map(repr, CONVERSATIONS[:3]))} must say whose turn it is"
            yield Problem(origin, "field", message)
            continue
        key = str(name)
        origins.setdefault(key, origin)
        role = role_of(_first(record, ROLES))
        text = record.get(source.text) if source.text else _first(record, TEXTS)
        if role is None:
            yield Problem(origin, "field", "'role' is neither the user's nor the assistant's")
            spoilt.add(key)
        elif not isinstance(text, str) or not text.strip():
            yield Problem(origin, "field", "the turn says nothing")
            spoilt.add(key)
        else:
            turns.setdefault(key, []).append(Turn(role, text))
    for key, said in turns.items():
        if key in spoilt:
            continue
        if wrong := check_turns(said):
            yield Problem(origins[key], "field", f"conversation {key!r}: {wrong}")
        else:
            yield Dialogue(origin=origins[key], id=key, group=key, turns=tuple(said))


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if name in record), None)
