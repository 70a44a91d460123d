"""BrokenOff: what is needed to go on with a batch whose `gptflow submit` ended before it did."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Self

from gptflow.errors import InvalidInput

SUFFIX = ".batch"
"""It is kept beside the output file until that is complete."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrokenOff:
    """A note beside an output file that is not complete.

    Attributes:
        sha256: of the input file.
        begun: bytes that the output had when the batch began: rows that have their lines there
            are not in the batch.
    """

    batch: str
    task: str
    tenant: str
    seed: int | None
    sha256: str | None
    begun: int

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """The note on an output file; None where there is none.

        Raises:
            InvalidInput: it is malformed.
        """
        path = _path(out)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise InvalidInput(
                f"{path} is malformed.", hint=f"Delete it and {out}, and start again."
            ) from None

    def write(self, out: Path) -> None:
        """Keep it, all or nothing."""
        path = _path(out)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")
        os.replace(fresh, path)

    @staticmethod
    def remove(out: Path) -> None:
        _path(out).unlink(missing_ok=True)


def _path(out: Path) -> Path:
    return out.with_name(out.name + SUFFIX)
