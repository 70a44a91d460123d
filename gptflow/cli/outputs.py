"""Outputs: a batch's output and error files, written as results arrive, in order in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from gptflow.cli.row_index import Place, RowIndex
from gptflow.errors import InvalidInput, JobCancelled


class Outputs:
    """Where a batch's output lines go: one a row, `{custom_id, output, error, provenance}`.

    A line is on disk as soon as its row has ended, in the order in which rows end; the finished
    file has the rows' order. Standard output gets each line as soon as all before it are there.
    What is in memory does not depend on the number of rows. Thread-safe.

    Args:
        out: the output file; None for standard output.
        errors: a file for the lines of rows that failed, which are in the output as well.
        resume: keep what is in `out`, from a run that broke off.

    Raises:
        click.BadParameter: a file cannot be written.
        InvalidInput: what is in `out` is not the output of a batch.
    """

    def __init__(self, out: Path | None, errors: Path | None, *, resume: bool = False) -> None:
        self.index = RowIndex()
        self._lock = threading.Lock()
        self._next = 0  # position of the row that is printed next
        self._out = out.resolve() if out is not None and _is_plain(out) else None
        with _writable("--errors", errors):
            self._errors_path = None if errors is None else errors.resolve()
            self._errors = None if errors is None else errors.open("wb", buffering=0)
        with _writable("--out", out):
            self._stream: IO[bytes] | None = None
            if self._out is None and out is not None:
                self._stream = out.open("wb")
            self._lines = self._open_lines(resume)
        self._end = os.fstat(self._lines.fileno()).st_size
        if self._out is not None and self._end:
            try:
                self._load(self._out)
            except BaseException:
                self.close()
                raise

    def _open_lines(self, resume: bool) -> IO[bytes]:
        if self._out is None:
            return tempfile.TemporaryFile(buffering=0)
        return self._out.open("r+b" if resume and self._out.exists() else "w+b", buffering=0)

    @property
    def size(self) -> int:
        """Bytes of the output so far: what is written later is behind them."""
        return self._end

    def _load(self, path: Path) -> None:
        offset = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                row = _parse(line)
                if row is None:
                    if offset + len(line) < self._end:
                        raise InvalidInput(
                            f"{path} is not the output of a batch: see its line {number}.",
                            hint="Give another --out.",
                        )
                    break  # it was being written when the process ended
                self._note(row, offset, len(line))
                offset += len(line)
        self._lines.truncate(offset)
        self._end = offset

    def _note(self, row: Mapping[str, Any], offset: int, length: int) -> None:
        error = row["error"]
        if error is not None and error["code"] == JobCancelled.code:
            return  # it was not run, so going on means to run it
        place = Place(offset, length, error is not None)
        self.index.put_line(row["custom_id"], place)
        if place.failed and self._errors is not None:
            _write(self._errors, self._read(place))

    def write(self, row: Mapping[str, Any], *, key: str | None = None) -> None:
        """Write a row's line.

        Args:
            key: the row's name in the index, where it is not its custom id.

        Raises:
            click.ClickException: the disk is full.
        """
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        with self._lock, _reported(self._out):
            place = Place(self._end, len(line), row["error"] is not None)
            self._lines.seek(self._end)
            _write(self._lines, line)
            self._end += len(line)
            self.index.put_line(row["custom_id"] if key is None else key, place)
            if place.failed and self._errors is not None:
                _write(self._errors, line)

    def print_ready(self) -> None:
        """Print the lines whose turn has come, where the output is a stream."""
        if self._out is not None:
            return
        with self._lock:
            while (place := self.index.line_at(self._next)) is not None:
                self._print(place)
                self._next += 1

    def _print(self, place: Place) -> None:
        line = self._read(place)
        if self._stream is not None:
            self._stream.write(line)
        else:
            click.echo(line.decode("utf-8", "replace"), nl=False)

    def _read(self, place: Place) -> bytes:
        return os.pread(self._lines.fileno(), place.length, place.offset)

    def finish(self) -> None:
        """Put the files in the rows' order."""
        with _reported(self._out):
            if self._out is not None:
                self._rewrite(self._out, failed=False)
            if self._errors_path is not None and _is_plain(self._errors_path):
                self._rewrite(self._errors_path, failed=True)

    def _rewrite(self, path: Path, *, failed: bool) -> None:
        """Replace a file by what it must be in the end: all lines, or the failed ones."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                for place in self.index.ordered():
                    if place.failed or not failed:
                        stream.write(self._read(place))
            shutil.copymode(path, name)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def close(self) -> None:
        """Print what has ended and was not printed yet, whatever is missing before it."""
        rows, _, _ = self.index.counts()
        if self._out is None:
            for position in range(self._next, rows):
                if (place := self.index.line_at(position)) is not None:
                    self._print(place)
        for stream in (self._lines, self._stream, self._errors):
            if stream is not None:
                stream.close()
        self.index.close()


def _is_plain(path: Path) -> bool:
    """Whether it is a file, or will be one: not a pipe, a terminal or /dev/null."""
    return path.is_file() or not path.exists()


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        return None
    error = row.get("error")
    if "error" not in row or not (error is None or (isinstance(error, dict) and "code" in error)):
        return None
    return row


def _write(stream: IO[bytes], data: bytes) -> None:
    """All of it: an unbuffered file may take a part."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


@contextlib.contextmanager
def _writable(option: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be written: {error.strerror}.", param_hint=f"'{option}'"
        ) from None


@contextlib.contextmanager
def _reported(path: Path | None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"{path or 'The output'}: {error.strerror}.") from None
