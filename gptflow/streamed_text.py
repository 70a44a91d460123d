"""StreamedText: what somebody who reads a job's text has been given, and what comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptflow.transport import Event


class StreamedText:
    """Puts the events of a stream together to a text, piece by piece.

    A job that starts again usually writes the same once more: what the reader has is not given
    twice. Only where the new text differs is the reader told to forget the old one.

    Args:
        on_reset: called when the text starts again with the next piece.

    Attributes:
        text: what the reader has.
    """

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self.text = ""
        self._on_reset = on_reset
        self._fresh = ""
        self._whole = True

    def take(self, event: Event) -> str:
        """The piece to give the reader when an event arrives; it may be empty."""
        if event.kind == "reset":
            self._fresh = ""
            self._whole = True
        elif event.kind == "gap":
            self._whole = False
        elif event.kind == "delta" and event.sample == 0:
            self._fresh += event.text
            if not self.text.startswith(self._fresh):
                return self._replace(self._fresh)
        return ""

    def finish(self, output: Any) -> str:
        """The last piece, once the job's output is known: then the text is what was written.

        Args:
            output: of the job. Where a part of the text was lost on its way, its `text`
                stands in for what was streamed, if it has one.
        """
        if not self._whole and isinstance(output, dict) and isinstance(output.get("text"), str):
            self._fresh = output["text"]
        return "" if self._fresh == self.text else self._replace(self._fresh)

    def _replace(self, text: str) -> str:
        """What makes the reader's text this one."""
        if text.startswith(self.text):
            piece = text[len(self.text) :]
        else:
            self._on_reset()
            piece = text
        self.text = text
        return piece
