"""Download: showing how far somebody else's download has come."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from gptflow.models.source import Progress


@contextlib.contextmanager
def watch_folder(folder: Path, total: int | None, progress: Progress) -> Iterator[None]:
    """Report how many bytes lie in `folder` while somebody else downloads into it."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.25):
            progress("downloading", _size(folder), total)

    thread = threading.Thread(target=look, daemon=True, name="gptflow-download-progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`, of which some may vanish meanwhile."""
    size = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(directory, name)).st_size
    return size
