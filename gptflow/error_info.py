"""ErrorInfo: an error as data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it travels: in a result record, over HTTP, in a batch's output file."""

    code: str
    message: str
    hint: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return {"code": self.code, "message": self.message, "hint": self.hint}
