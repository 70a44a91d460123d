"""Problems: what is wrong with a row, where, and the error that it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from gptflow.errors import BadEncoding, BadLabel, BadRows, LineTooLong, SpanOffToken
from gptflow.training.data.rows import Origin

Severity = Literal["error", "warning"]
Reason = Literal["encoding", "too_long", "label", "span", "format", "field", "tags"]

_TOLD = 5
"""Problems in one message; the others are counted."""

_ERRORS: dict[str, type[BadRows]] = {
    "encoding": BadEncoding,
    "too_long": LineTooLong,
    "label": BadLabel,
    "span": SpanOffToken,
}
_HINTS: dict[str, str] = {
    "encoding": "Convert the file with `iconv -t UTF-8`, or say what it is: `--encoding latin-1`.",
    "too_long": "Is a line end missing? Else raise the limit with `--max-line`.",
    "label": "Mend the labels, or take blanks round them away with `--strip-labels`.",
    "span": "Move the spans to the borders of words, or give `tokens` with each row.",
}
_HINT = "Mend these lines; `gptflow data check` lists them all."


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One line that is no row.

    Attributes:
        reason: what kind of problem it is.
        message: a sentence without a full stop. It holds labels and names of fields, never the
            text of a row.
    """

    origin: Origin
    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"

    def as_dict(self) -> dict[str, str | int]:
        return {
            "file": self.origin.file,
            "line": self.origin.line,
            "reason": self.reason,
            "message": self.message,
        }


def error_for(problems: Sequence[Problem]) -> BadRows:
    """The error that stands for all of them: a special one where they are all of one kind."""
    reasons = {problem.reason for problem in problems}
    reason = reasons.pop() if len(reasons) == 1 else ""
    told = "; ".join(str(problem) for problem in problems[:_TOLD])
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    count = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
    return _ERRORS.get(reason, BadRows)(
        f"{count} cannot be used: {told}{more}.",
        hint=_HINTS.get(reason, _HINT),
        problems=problems,
    )
