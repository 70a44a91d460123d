"""Shelf: the folder that models stand in, and how one gets there whole or not at all.

<shelf>/
    smollm2-135m-instruct/                  a model
    .partial@smollm2-135m-instruct@k3j9/    being built, or left by a pull that was killed
    .locks/smollm2-135m-instruct.lock
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from gptflow.errors import ModelError
from gptflow.models import name
from gptflow.models.source import Progress

_PARTIAL = ".partial@"  # no model's name has a dot at its beginning or an at sign


class Shelf:
    """Holds models by name. One process at a time changes what has a given name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def lock(self, own: str, progress: Progress) -> Iterator[None]:
        """Keep every other process from changing this model; wait for one that does already.

        Raises:
            ModelError: the folder cannot be written.
        """
        with self._writing():
            lock = self._lock_file(own)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                progress("waiting for another process that pulls this model", 0, None)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def build(self, own: str) -> Iterator[Path]:
        """A new folder to fill; it becomes the model when the block ends without an error.

        Raises:
            ModelError: the folder cannot be written, for instance because the disk is full.
        """
        with self._writing():
            partial = self._new_partial(own)
            try:
                yield partial
                partial.chmod(0o755)  # a temporary folder lets only its owner in
                self._replace(partial, self.folder / own)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def sweep(self, own: str) -> None:
        """Delete what killed pulls left. Call it with the lock: nobody else is building `own`.

        What was left of other models goes too, where their lock is free.
        """
        for partial in self.folder.glob(f"{_PARTIAL}*"):
            other = partial.name.split("@")[1]
            if other == own:
                shutil.rmtree(partial, ignore_errors=True)
            elif name.is_name(other):
                with contextlib.suppress(filelock.Timeout), self._lock_file(other).acquire(0):
                    shutil.rmtree(partial, ignore_errors=True)

    def _replace(self, partial: Path, target: Path) -> None:
        if not target.exists():
            partial.rename(target)
            return
        # A folder cannot be renamed onto another. Killed between the two renames, this has
        # lost the old model, and the next pull builds it again.
        old = self._new_partial(target.name)
        target.rename(old / "old")
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def _new_partial(self, own: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{own}@", dir=self.folder))

    def _lock_file(self, own: str) -> filelock.BaseFileLock:
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(locks / f"{own}.lock")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"Pulling a model into {self.folder} failed: {error}.",
                hint="Set GPTFLOW_CACHE_DIR to a folder that can be written and has room.",
            ) from None
