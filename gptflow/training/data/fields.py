"""Fields: what a record must hold to be a row, kind by kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gptflow.training.data.problem import Problem, Reason
from gptflow.training.data.rows import (
    LABEL,
    Dialogue,
    LabelledText,
    Origin,
    PlainText,
    Preference,
    Role,
    Row,
    ScoredPair,
    TaggedText,
    Turn,
)
from gptflow.training.data.source import Kind, Source
from gptflow.training.data.tagging import complaint, detect, to_iob2
from gptflow.training.data.tokens import align, tag_tokens, tokens_of

TEXTS = ("text", "sentence", "utterance", "content", "review", "tweet")
LABELS = ("label", "category", "intent", "class", "topic", "sentiment")
CANDIDATES = ("candidate", "answer", "passage", "document")
QUERIES = ("query", "question", "prompt")
TURNS = ("turns", "messages", "conversations", "dialogue")
CONVERSATIONS = ("conversation", "conversation_id", "conversationId", "dialogue_id", "session_id")
SPANS = ("spans", "entities")

_ROLES: Mapping[str, Role] = {
    "system": "system",
    **dict.fromkeys(("user", "human", "customer", "client", "usr", "u"), "user"),
    **dict.fromkeys(("assistant", "agent", "bot", "gpt", "model", "sys", "a"), "assistant"),
}
_SPEAKERS = ("role", "from", "speaker", "s")
_SAYINGS = ("content", "text", "value", "utterance", "t")


class _Unfit(Exception):
    """A record that is no row, for a reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def to_row(kind: Kind, origin: Origin, record: Mapping[str, Any], source: Source) -> Row | Problem:
    """The record as a row of this kind, or what is wrong with it."""
    try:
        return _MAKERS[kind](origin, record, source)
    except _Unfit as unfit:
        return Problem(origin, unfit.reason, str(unfit))


def kind_of(record: Mapping[str, Any], source: Source) -> Kind | None:
    """The kind of row that a record with these fields is, as far as they tell."""

    def has(*names: str) -> bool:
        return any(name in record for name in names)

    if has("chosen") and has("rejected"):
        return "preferences"
    if has(*CANDIDATES) and has(*QUERIES) and has("score", "label"):
        return "scores"
    if has(*TURNS) or (has("role", "speaker", "from") and has(*CONVERSATIONS)):
        return "dialogues"
    if has("tags", *SPANS):
        return "tags"
    if source.labels or has(*LABELS):
        return "labels"
    return "text" if _has_text(record, source) else None


def check_label(label: str, *, what: str = "label") -> str | None:
    """What is wrong with a label, or None."""
    if not label.strip():
        return f"the {what} is blank"
    if label != label.strip():
        return f"the {what} {label!r} has blanks at its ends"
    if any(not c.isprintable() for c in label):
        return f"the {what} {label!r} has invisible characters in it"
    return None


def _labelled(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    columns = source.labels
    if not columns:
        name = _one_of(record, LABELS, "label")
        columns = {LABEL: name}
    labels: dict[str, str] = {}
    for head, column in columns.items():
        if column not in record:
            raise _Unfit("field", f"{column!r} is missing")
        label = _label(record[column], column, source)
        if label is not None:
            labels[head] = label
    if not labels:
        raise _Unfit("label", f"there is no label in {' or '.join(map(repr, columns.values()))}")
    return LabelledText(
        text=_text(record, source), labels=labels, **_common(origin, record, source)
    )


def _label(value: Any, column: str, source: Source) -> str | None:
    """None where the row has no label for a head."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps in it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Unfit("label", f"{column!r} must be a text or a whole number")
    label = str(value)
    if source.strip_labels:
        label = label.strip()
    if wrong := check_label(label):
        raise _Unfit("label", wrong)
    return source.rename.get(label, label)


def _tagged(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    common = _common(origin, record, source)
    words = record.get("tokens")
    text = _text(record, source) if words is None or _has_text(record, source) else None
    if words is None:
        assert text is not None
        tokens = tokens_of(text)
    else:
        text, tokens = align(_words(words), text)
    if "tags" in record:
        if words is None:
            raise _Unfit("field", "'tags' needs 'tokens' beside it")
        return TaggedText(text=text, tokens=tokens, tags=_tags(record, source, tokens), **common)
    spans = [_span(value, source) for value in _list(record, _one_of(record, SPANS, "spans"))]
    for start, end, label in spans:
        if not 0 <= start < end <= len(text):
            raise _Unfit("span", f"the span {start}:{end} of {label!r} is not inside the text")
    try:
        return TaggedText(text=text, tokens=tokens, tags=tag_tokens(tokens, spans), **common)
    except ValueError as error:
        raise _Unfit("span", str(error)) from None


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise _Unfit("field", "'tokens' must be a list of one text or more")
    if not all(isinstance(word, str) and word.strip() for word in value):
        raise _Unfit("field", "each of 'tokens' must be a text that is not blank")
    return [_whole(word, "tokens") for word in value]


def _tags(record: Mapping[str, Any], source: Source, tokens: Sequence[Any]) -> tuple[str, ...]:
    tags = _list(record, "tags")
    if len(tags) != len(tokens):
        raise _Unfit("tags", f"there are {len(tags)} tags for {len(tokens)} tokens")
    for tag in tags:
        wrong = complaint(tag) if isinstance(tag, str) else "a tag must be a text"
        if wrong:
            raise _Unfit("tags", wrong)
    try:
        return _renamed(to_iob2(tags, source.scheme or detect([tags])), source)
    except ValueError as error:
        raise _Unfit("tags", str(error)) from None


def _renamed(tags: Sequence[str], source: Source) -> tuple[str, ...]:
    rename = source.rename
    return tuple(t if t == "O" else t[:2] + rename.get(t[2:], t[2:]) for t in tags)


def _span(value: Any, source: Source) -> tuple[int, int, str]:
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end"), value.get("label", value.get("type"))]
    if not isinstance(value, list) or len(value) != 3:
        raise _Unfit("field", "a span must be start, end and label")
    start, end, label = value
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
        raise _Unfit("field", "a span's start and end must be whole numbers")
    if not isinstance(label, str):
        raise _Unfit("label", "a span's label must be a text")
    if source.strip_labels:
        label = label.strip()
    if wrong := check_label(label):
        raise _Unfit("label", wrong)
    label = source.rename.get(label, label)
    if any(c.isspace() for c in label):
        raise _Unfit("label", f"the label {label!r} has blanks in it, and tags have none")
    return start, end, label


def _dialogue(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    values = _list(record, _one_of(record, TURNS, "turns"))
    turns = tuple(_turn(value, number) for number, value in enumerate(values, 1))
    if wrong := check_turns(turns):
        raise _Unfit("field", wrong)
    return Dialogue(turns=turns, **_common(origin, record, source))


def check_turns(turns: Sequence[Turn]) -> str | None:
    """What is wrong with a conversation as a whole, or None."""
    if not any(turn.role == "assistant" for turn in turns):
        return "no turn is the assistant's, so there is nothing to learn"
    if any(turn.role == "system" for turn in turns[1:]):
        return "a system turn comes after the first"
    return None


def role_of(value: Any) -> Role | None:
    """Whose turn it is, by any of the usual names; None by another."""
    return _ROLES.get(value.strip().casefold()) if isinstance(value, str) else None


def _turn(value: Any, number: int) -> Turn:
    if not isinstance(value, dict):
        raise _Unfit("field", f"turn {number} must be an object")
    speaker = next((name for name in _SPEAKERS if name in value), None)
    saying = next((name for name in _SAYINGS if name in value), None)
    if speaker is None or saying is None:
        raise _Unfit("field", f"turn {number} must have 'role' and 'content'")
    role = role_of(value[speaker])
    if role is None:
        raise _Unfit("field", f"turn {number} is neither the user's nor the assistant's")
    text = value[saying]
    if not isinstance(text, str) or not text.strip():
        raise _Unfit("field", f"turn {number} says nothing")
    return Turn(role, _whole(text, saying))


def _scored(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    score = record.get("score", record.get("label"))
    if isinstance(score, str):
        try:
            score = float(score)
        except ValueError:
            score = None
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise _Unfit("field", "'score' must be a finite number")
    return ScoredPair(
        query=_required(record, _one_of(record, QUERIES, "query")),
        candidate=_required(record, _one_of(record, CANDIDATES, "candidate")),
        score=float(score),
        **_common(origin, record, source),
    )


def _preference(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    chosen, rejected = _required(record, "chosen"), _required(record, "rejected")
    if chosen.strip() == rejected.strip():
        raise _Unfit("field", "'chosen' and 'rejected' are the same")
    common = _common(origin, record, source)
    turns = _asked(record)
    if turns:
        *before, last = turns
        return Preference(
            prompt=last.text, before=tuple(before), chosen=chosen, rejected=rejected, **common
        )
    given = record.get("input")
    if given is not None and not isinstance(given, dict):
        raise _Unfit("field", "'input' must be an object")
    prompt = _required(record, _one_of(record, QUERIES, "prompt"))
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, input=given, **common)


def _asked(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The conversation that two answers go on with; empty where a prompt says what is asked."""
    name = next((name for name in TURNS if name in record), None)
    if name is None or any(query in record for query in QUERIES):
        return ()
    turns = tuple(_turn(value, number) for number, value in enumerate(_list(record, name), 1))
    if not turns or turns[-1].role != "user":
        raise _Unfit("field", f"the last of {name!r} is not the user's turn")
    if any(turn.role == "system" for turn in turns[1:]):
        raise _Unfit("field", "a system turn comes after the first")
    return turns


def _plain(origin: Origin, record: Mapping[str, Any], source: Source) -> Row:
    return PlainText(text=_text(record, source), **_common(origin, record, source))


_MAKERS: Mapping[Kind, Callable[[Origin, Mapping[str, Any], Source], Row]] = {
    "labels": _labelled,
    "tags": _tagged,
    "dialogues": _dialogue,
    "scores": _scored,
    "preferences": _preference,
    "text": _plain,
}


def _has_text(record: Mapping[str, Any], source: Source) -> bool:
    return source.text in record if source.text else any(name in record for name in TEXTS)


def _text(record: Mapping[str, Any], source: Source) -> str:
    return _required(record, source.text or _one_of(record, TEXTS, "text"))


def _one_of(record: Mapping[str, Any], names: Sequence[str], usual: str) -> str:
    return next((name for name in names if name in record), usual)


def _required(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise _Unfit("field", f"{name!r} is missing")
    value = record[name]
    if not isinstance(value, str):
        raise _Unfit("field", f"{name!r} must be a text")
    if not value.strip():
        raise _Unfit("field", f"{name!r} is blank")
    return _whole(value, name)


def _whole(text: str, name: str) -> str:
    """The text, if some encoding can carry it."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _Unfit("encoding", f"{name!r} holds half of a surrogate pair")
    return text


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        raise _Unfit(
            "field", f"{name!r} must be a list" if name in record else f"{name!r} is missing"
        )
    return value


def _common(origin: Origin, record: Mapping[str, Any], source: Source) -> dict[str, Any]:
    return {
        "origin": origin,
        "id": _name(record.get(source.id), source.id),
        "group": _name(record.get(source.group), source.group),
        "time": _time(record.get(source.time), source.time),
        "language": _name(record.get(source.language), source.language),
    }


def _name(value: Any, field: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Unfit("field", f"{field!r} must be a text or a whole number")
    return str(value)


def _time(value: Any, field: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            try:
                seconds = float(value)
            except ValueError:
                moment = datetime.fromisoformat(value.strip())
                seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        elif isinstance(value, datetime):
            seconds = value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        else:
            seconds = float(value)
    except (ValueError, TypeError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise _Unfit("field", f"{field!r} must be a date and time in ISO 8601, or seconds")
    return seconds
