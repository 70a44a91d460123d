"""Tracebacks: the line of somebody's code that an exception comes from."""

from __future__ import annotations

import traceback


def raised_at(error: BaseException, package: str) -> str:
    """`file:line` that an exception comes from: the deepest that belongs to `package`.

    Where none of the lines does, the deepest of all.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [
        (frame, line)
        for frame, line in frames
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package.partition(".")[0]
    ]
    for frame, line in (own or frames)[-1:]:
        return f"{frame.f_code.co_filename}:{line}"
    return "?"
