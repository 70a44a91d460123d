"""RowIndex: which rows there are, and where the output line of each is; on disk, not in memory."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Iterator

_SCHEMA = """
PRAGMA journal_mode = OFF;
CREATE TABLE rows (position INTEGER PRIMARY KEY, line INTEGER, name BLOB UNIQUE);
CREATE TABLE lines (name BLOB PRIMARY KEY, offset INTEGER, length INTEGER, failed INTEGER)
    WITHOUT ROWID;
BEGIN;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where an output line is.

    Attributes:
        failed: whether it tells of an error.
    """

    offset: int
    length: int
    failed: bool


class RowIndex:
    """Rows by name and by their position in the input; output lines by their row's name.

    Thread-safe. SQLite keeps it in a temporary file that nobody else sees.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_SCHEMA)
        self._lock = threading.Lock()

    def add_row(self, position: int, line: int, name: str) -> int | None:
        """Take a row in. Where its name is another's, it is not, and that one's line is told."""
        key = _key(name)
        with self._lock:
            try:
                self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (position, line, key))
            except sqlite3.IntegrityError:
                found = self._database.execute("SELECT line FROM rows WHERE name = ?", (key,))
                return int(found.fetchone()[0])
        return None

    def put_line(self, name: str, place: Place) -> None:
        """Say where the row's output line is, in place of an earlier one."""
        values = (_key(name), place.offset, place.length, place.failed)
        with self._lock:
            self._database.execute("REPLACE INTO lines VALUES (?, ?, ?, ?)", values)

    def line(self, name: str) -> Place | None:
        """Where the row's output line is; None while it has none."""
        sql = "SELECT offset, length, failed FROM lines WHERE name = ?"
        return self._one(sql, _key(name))

    def line_at(self, position: int) -> Place | None:
        """As `line`, for the row at a position."""
        sql = "SELECT offset, length, failed FROM lines JOIN rows USING (name) WHERE position = ?"
        return self._one(sql, position)

    def _one(self, sql: str, value: object) -> Place | None:
        with self._lock:
            found = self._database.execute(sql, (value,)).fetchone()
        return None if found is None else Place(found[0], found[1], bool(found[2]))

    def ordered(self) -> Iterator[Place]:
        """All output lines: the rows' in the rows' order, then those of no row here."""
        yield from self._places(
            "SELECT offset, length, failed FROM rows JOIN lines USING (name) ORDER BY position"
        )
        yield from self._places(
            "SELECT offset, length, failed FROM lines"
            " WHERE name NOT IN (SELECT name FROM rows) ORDER BY offset"
        )

    def _places(self, sql: str) -> Iterator[Place]:
        with self._lock:
            for offset, length, failed in self._database.execute(sql):
                yield Place(offset, length, bool(failed))

    def missing(self) -> Iterator[str]:
        """The names of rows without an output line."""
        sql = "SELECT name FROM rows WHERE name NOT IN (SELECT name FROM lines) LIMIT 500"
        while True:
            with self._lock:
                names = self._database.execute(sql).fetchall()
            if not names:
                return
            for (name,) in names:
                yield name.decode("utf-8", "surrogatepass")

    def counts(self) -> tuple[int, int, int]:
        """How many rows there are, how many of them have an output line, and a failed one."""
        sql = "SELECT count(*), count(failed), total(failed) FROM rows LEFT JOIN lines USING (name)"
        with self._lock:
            rows, ended, failed = self._database.execute(sql).fetchone()
        return rows, ended, int(failed)

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _key(name: str) -> bytes:
    # A name may hold what is no Unicode text.
    return name.encode("utf-8", "surrogatepass")
