"""Kept: what is computed once of a run, and stays in its folder for later sittings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptflow.errors import TrainingError
from gptflow.training.evaluation.summary import write_whole


def kept(path: Path, key: object, compute: Callable[[], Any]) -> Any:
    """A value that JSON can hold: read from a file if it is of this key, else computed and kept.

    Args:
        key: what the value depends on, by its `repr`.

    Raises:
        TrainingError: the file cannot be written.
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == digest:
            return found["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it is not there yet, or is of no use
    value = compute()
    try:
        write_whole(path, json.dumps({"key": digest, "value": value}).encode())
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Make room, then go on with the run.",
        ) from None
    return value
