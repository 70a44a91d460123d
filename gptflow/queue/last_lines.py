"""LastLines: the end of a worker's log, kept for the day on which it dies."""

from __future__ import annotations

import collections
import logging

_LINES = 50
_WIDTH = 500
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class LastLines(logging.Handler):
    """Remembers the last lines that were logged, of the root logger, while it is attached."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_FORMAT)
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)

    def attach(self) -> None:
        logging.getLogger().addHandler(self)

    def detach(self) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record)[:_WIDTH])

    def lines(self) -> list[str]:
        """The oldest first."""
        return list(self._lines)
