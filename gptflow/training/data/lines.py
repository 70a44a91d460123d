"""Lines: of a text file, compressed or not, one at a time, each of bounded length."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from gptflow.errors import UnreadableFile
from gptflow.training.data.problem import Problem
from gptflow.training.data.rows import Origin

MAX_LINE = 1 << 20
"""Bytes in a line, if nothing else is said: a megabyte of text is a book."""

_GZIP = b"\x1f\x8b"
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
)


def read_lines(
    path: Path, *, encoding: str = "utf-8", max_line: int = MAX_LINE
) -> Iterator[tuple[int, str | Problem]]:
    """The number of each line, from 1, and its text without the line end, or what is wrong.

    No more than `max_line` bytes are held at a time, however long a line is.

    Raises:
        UnreadableFile: it cannot be opened, is no text, or is damaged; or there is no such
            encoding.
    """
    codec = _codec(encoding)
    with open_bytes(path) as file:
        number = 0
        try:
            while line := file.readline(max_line + 1):
                number += 1
                if number == 1:
                    _refuse_foreign(path, line, codec)
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) > max_line and not line.endswith(b"\n"):
                    size = len(line) + _skip(file)
                    message = f"the line is {size} bytes long, and {max_line} are the most"
                    yield number, Problem(Origin(str(path), number), "too_long", message)
                else:
                    yield number, _decode(line.rstrip(b"\r\n"), codec, Origin(str(path), number))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise UnreadableFile(
                f"{path} is damaged: its compression breaks off after line {number}.",
                hint="Get the file again.",
            ) from None


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, through gzip where it begins like one.

    Raises:
        UnreadableFile: it does not exist, is a folder, or may not be read.
    """
    try:
        with path.open("rb") as probe:
            start = probe.read(2)
        return cast(IO[bytes], gzip.open(path)) if start == _GZIP else path.open("rb")
    except OSError as error:
        raise UnreadableFile(
            f"{path} cannot be read: {error.strerror}.", hint="Check its name and its rights."
        ) from None


def _skip(file: IO[bytes]) -> int:
    """Go to the line's end; how many bytes that was."""
    size = 0
    while part := file.readline(1 << 16):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _decode(line: bytes, codec: str, origin: Origin) -> str | Problem:
    try:
        return line.decode(codec)
    except UnicodeDecodeError as error:
        where = f"its byte {error.start + 1} is 0x{line[error.start]:02x}"
        return Problem(origin, "encoding", f"the line is not {codec.upper()}: {where}")


def _codec(encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding).name
        "\n".encode(codec)
    except (LookupError, TypeError):
        raise UnreadableFile(
            f"There is no text encoding {encoding!r}.", hint="Such as utf-8, latin-1, gb18030."
        ) from None
    if "\n".encode(codec) != b"\n":
        raise UnreadableFile(
            f"Lines in {encoding} cannot be told apart byte by byte.",
            hint=f"Convert the file first: `iconv -f {encoding} -t UTF-8`.",
        )
    return codec


def _refuse_foreign(path: Path, line: bytes, codec: str) -> None:
    for mark, name in _FOREIGN:
        if line.startswith(mark):
            raise UnreadableFile(
                f"{path} is {name}, not text.", hint="Unpack it, or mend its suffix."
            )
    for mark, name in _BOMS:
        if line.startswith(mark):
            raise UnreadableFile(
                f"{path} is in {name.upper()}.", hint=f"Type `iconv -f {name} -t UTF-8` first."
            )
    if b"\0" in line and codec.startswith("utf"):
        raise UnreadableFile(
            f"{path} has zero bytes in its first line: it is no text.",
            hint="Give JSONL, CSV, TSV, CoNLL or Parquet.",
        )
