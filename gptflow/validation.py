"""Validation: what pydantic finds wrong with a value, in plain words.

The words never hold the value, only what kind of value it is: messages go into logs and result
records, and the value may be a user's text or a password.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from gptflow.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

MISSING = "missing"
UNKNOWN = "extra_forbidden"

# What a field must be, by the beginning of pydantic's names for errors: the longest that fits.
_KINDS: Mapping[str, str] = {
    "string": "text",
    "bytes": "text",
    "int": "a whole number",
    **dict.fromkeys(("float", "decimal", "fraction", "complex"), "a number"),
    "bool": "true or false",
    **dict.fromkeys(("list", "tuple", "set", "frozen_set", "deque", "iterable"), "a list"),
    **dict.fromkeys(("dict", "mapping", "model", "dataclass", "arguments"), "an object"),
    "none": "null",
}
# The same where it is text of a certain form.
_FORMATS: Mapping[str, str] = {
    "datetime": "a date and time in ISO 8601",
    "date": "a date in ISO 8601",
    "time": "a time in ISO 8601",
    "time_delta": "a duration in ISO 8601",
    "timezone": "a time with the right zone",
    "url": "a URL",
    "uuid": "a UUID",
    "json": "text that is JSON",
}
# What its value must be, where it is of the right kind.
_VALUES: Mapping[str, str] = {
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "decimal_max_digits": "a number of at most {max_digits} digits",
    "decimal_max_places": "a number of at most {decimal_places} decimal places",
    "decimal_whole_digits": "a number of at most {whole_digits} digits before the point",
    "too_short": "{min_length} or more items long",
    "too_long": "at most {max_length} items long",
    "string_too_short": "{min_length} or more characters long",
    "string_too_long": "at most {max_length} characters long",
    "bytes_too_short": "{min_length} or more bytes long",
    "bytes_too_long": "at most {max_length} bytes long",
    "string_pattern_mismatch": "{form}",
    "union_tag_invalid": "an object whose {discriminator} is one of {expected_tags}",
    "union_tag_not_found": "an object with a {discriminator}",
    "string_not_ascii": "ASCII text",
    **dict.fromkeys(("date_past", "datetime_past"), "in the past"),
    **dict.fromkeys(("date_future", "datetime_future"), "in the future"),
}
# What came, by its type in Python: the first that fits.
_GIVEN: Sequence[tuple[type | tuple[type, ...], str]] = (
    (str, "text"),
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a decimal number"),
    (type(None), "null"),
    (Mapping, "an object"),
    ((list, tuple, set, frozenset), "a list"),
)
_TOLD = 3
"""Problems in one sentence; the others are counted."""

_CLASS = r"\[([^\]\\^]+)\]"
_CHARACTERS = re.compile(rf"\^(?:{_CLASS})?{_CLASS}\{{(\d+),(\d+)\}}\$")
_UNSEEN = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One field that is wrong.

    Attributes:
        kind: pydantic's name for the error.
        path: the names and indices that lead to the field; empty for the whole.
        must_be: what it may be, such as "a list".
        given: what kind of value came in its place; empty where the kind is right. The length
            of what is too long.
        message: what is wrong, in the words of whoever wrote the check.
    """

    kind: str
    path: tuple[str | int, ...]
    must_be: tuple[str, ...] = ()
    given: str = ""
    message: str = ""

    @property
    def field(self) -> str:
        """Where it is, such as `messages[0].role`."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return "".join(steps).removeprefix(".")

    @property
    def complaint(self) -> str:
        """What is wrong with it, to go after its name."""
        if self.kind == MISSING:
            return "is missing"
        if self.kind == UNKNOWN:
            return "is not a known field"
        if self.must_be:
            given = f", not {self.given}" if self.given else ""
            return f"must be {' or '.join(self.must_be)}{given}"
        return f"does not fit: {self.message}"

    def describe(self, whole: str) -> str:
        """A sentence without a full stop; `whole` is what an empty path means."""
        if self.message and not self.path:
            return self.message
        return f"{repr(self.field) if self.path else whole} {self.complaint}"


def find_problems(error: ValidationError, data: Any) -> list[Problem]:
    """Every field that is wrong, once, in pydantic's order.

    Args:
        data: what was validated.
    """
    found: dict[tuple[str | int, ...], Problem] = {}
    for details in error.errors(include_url=False):
        problem = _problem(details, data)
        if earlier := found.get(problem.path):
            # A union is refused once for each of its members.
            alternatives = dict.fromkeys(earlier.must_be + problem.must_be)
            problem = dataclasses.replace(earlier, must_be=tuple(alternatives))
        found[problem.path] = problem
    return [
        problem
        for path, problem in found.items()
        # Items that are wrong are not counted, so that what holds them seems too short.
        if problem.kind != "too_short"
        or not any(other != path and other[: len(path)] == path for other in found)
    ]


def explain(error: ValidationError, data: Any, *, whole: str) -> str:
    """What is wrong, as one sentence without a full stop.

    Args:
        data: what was validated, and `whole` what it is called, such as "the input".
    """
    return summarise(find_problems(error, data), whole=whole)


def summarise(problems: Sequence[Problem], *, whole: str) -> str:
    """The first problems in one sentence without a full stop, and how many more there are."""
    told = "; ".join(problem.describe(whole) for problem in problems[:_TOLD])
    return f"{told}; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else told


def check_seconds(seconds: float | None, what: str = "timeout") -> None:
    """Refuse a span of time that no clock can measure.

    Raises:
        InvalidInput: it is NaN or infinite.
    """
    if seconds is not None and not math.isfinite(seconds):
        raise InvalidInput(
            f"{what} must be a finite number of seconds.", hint="Leave it out for no limit."
        )


def _problem(details: ErrorDetails, data: Any) -> Problem:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    path = tuple(_path(details["loc"], data, missing=kind == MISSING))
    if kind in (MISSING, UNKNOWN):
        return Problem(kind, path)
    if kind not in _standard_kinds():  # the words of whoever wrote the type
        return Problem(kind, path, message=details["msg"].rstrip("."))
    if kind in ("value_error", "assertion_error"):
        return Problem(kind, path, message=str(context["error"]).rstrip("."))
    given = next((name for types, name in _GIVEN if isinstance(value, types)), "something else")
    if (must_be := _VALUES.get(kind)) is not None:
        another_kind = kind == "literal_error" and not isinstance(value, str)
        must_be = must_be.format_map(_readable(context))
        if kind in ("string_too_long", "bytes_too_long"):  # how much to take away
            return Problem(kind, path, (must_be,), str(len(value)))
        return Problem(kind, path, (must_be,), given if another_kind else "")
    if (must_be := _longest(_FORMATS, kind)) is not None:
        return Problem(kind, path, (must_be,), "" if isinstance(value, str) else given)
    return Problem(kind, path, (_longest(_KINDS, kind) or "of another kind",), given)


def _path(steps: Sequence[str | int], data: Any, *, missing: bool) -> Iterator[str | int]:
    """The steps that are fields of `data` or places in it, without the members of unions."""
    for number, step in enumerate(steps):
        inside = _inside(data, step)
        is_field = inside is not _UNSEEN or data is _UNSEEN or number == 0
        if is_field or (missing and number == len(steps) - 1):
            data = inside
            yield step


def _inside(data: Any, step: str | int) -> Any:
    try:
        return data[step]
    except (LookupError, TypeError):
        return _UNSEEN


def _longest(table: Mapping[str, str], kind: str) -> str | None:
    fitting = [start for start in table if kind.startswith(f"{start}_")]
    return table[max(fitting, key=len)] if fitting else None


def _readable(context: Mapping[str, Any]) -> dict[str, Any]:
    """Limits as one writes them, and a pattern as the characters that it allows."""
    words: dict[str, Any] = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in context.items()
    }
    if "pattern" in words:
        words["form"] = f"text of the form {words['pattern']}"
        if allowed := _CHARACTERS.fullmatch(words["pattern"]):
            first, characters, least, most = allowed.groups()
            extra = 1 if first else 0
            words["form"] = (
                f"{int(least) + extra} to {int(most) + extra} characters out of "
                + _spaced(characters)
                + (f", beginning with one out of {_spaced(first)}" if first else "")
            )
    return words


def _spaced(characters: str) -> str:
    return " ".join(re.findall(".-.|.", characters))


@functools.cache
def _standard_kinds() -> frozenset[str]:
    from pydantic_core.core_schema import ErrorType

    return frozenset(get_args(ErrorType))
