"""The store: what monitors have seen, counted and said, in one SQLite file.

One run of a monitor is one transaction, so that what it read, counted and alerted is recorded
together or not at all. Several processes may share the file: SQLite lets one of them write at a
time and the others wait. It keeps a rollback journal, because the write-ahead log of libraries
before 3.51.3 can corrupt a file that several connections write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from gptflow.monitoring.duplicates import Fingerprint
from gptflow.monitoring.series import Key, Point
from gptflow.monitoring.surge import DAY

FILE_NAME = "monitors.sqlite3"
LEASE = 900.0
"""Seconds after which a run that has not ended is taken for dead."""

_WAIT = 60.0
"""Seconds to wait for another process to finish writing."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS monitors (
    name TEXT PRIMARY KEY, paused INTEGER NOT NULL DEFAULT 0,
    bucket INTEGER, first INTEGER, judged INTEGER, newest REAL,
    calibration TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS runs (
    monitor TEXT, fire TEXT, started REAL NOT NULL, finished REAL, report TEXT,
    PRIMARY KEY (monitor, fire)
);
CREATE TABLE IF NOT EXISTS stories (
    monitor TEXT, id TEXT, ts REAL NOT NULL, text TEXT, source TEXT,
    exact TEXT NOT NULL, simhash TEXT NOT NULL, figures TEXT NOT NULL,
    duplicate_of TEXT, topic TEXT, label TEXT, p_negative REAL, entities TEXT,
    PRIMARY KEY (monitor, id)
);
CREATE INDEX IF NOT EXISTS stories_by_time ON stories (monitor, ts);
CREATE TABLE IF NOT EXISTS points (
    monitor TEXT, topic TEXT, entity TEXT, start INTEGER,
    raw INTEGER NOT NULL, total INTEGER NOT NULL,
    negative INTEGER NOT NULL, positive INTEGER NOT NULL,
    PRIMARY KEY (monitor, topic, entity, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tracks (
    monitor TEXT, topic TEXT, entity TEXT, track TEXT NOT NULL,
    PRIMARY KEY (monitor, topic, entity)
);
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, monitor TEXT NOT NULL, opened INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS alerts_by_time ON alerts (monitor, opened);
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A post that was read: what it said of itself, and what was found out about it.

    `topic` and what follows are None for a repeat and for a post that cannot be classified.
    """

    id: str
    ts: float
    text: str
    source: str | None
    fingerprint: Fingerprint
    duplicate_of: str | None = None
    topic: str | None = None
    label: str | None = None
    p_negative: float | None = None
    entities: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a monitor stands.

    Attributes:
        first: start of the bucket that its history begins with; None before it has any.
        judged: the end of the last bucket that was judged.
        newest: the latest event time seen.
    """

    name: str
    paused: bool = False
    bucket: int | None = None
    first: int | None = None
    judged: int | None = None
    newest: float | None = None
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def history_days(self) -> float:
        """Days from the beginning of its history to the last judged bucket."""
        if self.first is None or self.judged is None:
            return 0.0
        return max(0.0, (self.judged - self.first) / DAY)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What became of the attempt to start a run: ours, or the report of whose it is.

    Both are None while another process is at it.
    """

    ours: bool = False
    report: Mapping[str, Any] | None = None


class Store:
    """The monitors' file. Thread-safe: every method opens a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # it holds what people wrote
            with self.write() as changes:
                changes.create()

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """The store of a data folder."""
        return cls(folder / FILE_NAME)

    @contextlib.contextmanager
    def write(self) -> Iterator[Changes]:
        """All that is changed inside is recorded together at its end, or not at all."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Changes(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextlib.contextmanager
    def read(self) -> Iterator[View]:
        """A view of one moment."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN")
            yield View(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        return connection


class View:
    """Questions to the store."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def state(self, monitor: str) -> State:
        """Where a monitor stands; a fresh state for one that has never run."""
        row = self._db.execute("SELECT * FROM monitors WHERE name = ?", (monitor,)).fetchone()
        if row is None:
            return State(name=monitor)
        return State(
            **{
                **dict(row),
                "paused": bool(row["paused"]),
                "calibration": json.loads(row["calibration"]),
            }
        )

    def names(self) -> list[str]:
        """The monitors that have run or are paused."""
        return [row[0] for row in self._db.execute("SELECT name FROM monitors ORDER BY name")]

    def seen(self, monitor: str, ids: Iterable[str]) -> set[str]:
        """Those of the ids that were read before."""
        query = "SELECT 1 FROM stories WHERE monitor = ? AND id = ?"
        return {id for id in ids if self._db.execute(query, (monitor, id)).fetchone()}

    def fingerprints(
        self, monitor: str, start: float, end: float
    ) -> Iterator[tuple[str, float, Fingerprint]]:
        """Id, time and fingerprint of the stories, not repeats, between two times."""
        query = (
            "SELECT id, ts, exact, simhash, figures FROM stories "
            "WHERE monitor = ? AND ts BETWEEN ? AND ? AND duplicate_of IS NULL"
        )
        for row in self._db.execute(query, (monitor, start, end)):
            fingerprint = Fingerprint(row["exact"], int(row["simhash"], 16), row["figures"])
            yield row["id"], row["ts"], fingerprint

    def topic_of(self, monitor: str, id: str) -> tuple[str | None, tuple[str, ...]]:
        """A story's topic and entities."""
        query = "SELECT topic, entities FROM stories WHERE monitor = ? AND id = ?"
        row = self._db.execute(query, (monitor, id)).fetchone()
        return (row["topic"], tuple(json.loads(row["entities"]))) if row else (None, ())

    def negatives(self, monitor: str, key: Key, start: int, end: int) -> list[dict[str, Any]]:
        """The negative stories of a window, the surest first."""
        query = (
            "SELECT id, ts, text, source, topic, p_negative, entities FROM stories "
            "WHERE monitor = ? AND ts >= ? AND ts < ? AND label = 'negative' "
            "AND duplicate_of IS NULL AND (? = '*' OR topic = ?) ORDER BY p_negative DESC, id"
        )
        rows = self._db.execute(query, (monitor, start, end, key.topic, key.topic))
        stories = [{**dict(row), "entities": json.loads(row["entities"])} for row in rows]
        return [s for s in stories if not key.entity or key.entity in s["entities"]]

    def series(
        self, monitor: str, *, since: int = 0, key: Key | None = None
    ) -> dict[Key, dict[int, Point]]:
        """Points by the start of their bucket, by series."""
        query = "SELECT * FROM points WHERE monitor = ? AND start >= ?"
        values: list[Any] = [monitor, since]
        if key is not None:
            query += " AND topic = ? AND entity = ?"
            values += [key.topic, key.entity]
        series: dict[Key, dict[int, Point]] = {}
        for row in self._db.execute(query, values):
            point = Point(
                raw=row["raw"],
                total=row["total"],
                negative=row["negative"],
                positive=row["positive"],
            )
            series.setdefault(Key(row["topic"], row["entity"]), {})[row["start"]] = point
        return series

    def starts(self, monitor: str, *, since: int) -> list[int]:
        """The buckets from `since` on that hold posts, in order."""
        query = (
            "SELECT start FROM points WHERE monitor = ? AND topic = ? AND entity = ? "
            "AND start >= ? ORDER BY start"
        )
        return [row[0] for row in self._db.execute(query, (monitor, *Key(), since))]

    def tracks(self, monitor: str) -> dict[Key, dict[str, Any]]:
        """Where each series' detector stands."""
        rows = self._db.execute("SELECT * FROM tracks WHERE monitor = ?", (monitor,))
        return {Key(row["topic"], row["entity"]): json.loads(row["track"]) for row in rows}

    def alerts(self, monitor: str | None = None, *, limit: int = 100) -> list[dict[str, Any]]:
        """The newest alerts first."""
        query = "SELECT body FROM alerts WHERE ? IS NULL OR monitor = ? ORDER BY opened DESC, id"
        rows = self._db.execute(query + " LIMIT ?", (monitor, monitor, limit))
        return [json.loads(row["body"]) for row in rows]

    def open_alerts(self, monitor: str, *, or_after: float = math.inf) -> list[dict[str, Any]]:
        """Alerts that are firing, and all whose window ends after a time, the newest first."""
        query = (
            "SELECT body FROM alerts WHERE monitor = ? "
            "AND (json_extract(body, '$.status') = 'firing' "
            "OR json_extract(body, '$.window.end') > ?) ORDER BY opened DESC, id"
        )
        return [json.loads(row["body"]) for row in self._db.execute(query, (monitor, or_after))]

    def undelivered(self, monitor: str) -> list[dict[str, Any]]:
        """Alerts with a change that nobody was told of yet, oldest first."""
        query = "SELECT body FROM alerts WHERE monitor = ? AND delivered = 0 ORDER BY opened, id"
        return [json.loads(row["body"]) for row in self._db.execute(query, (monitor,))]

    def runs(self, monitor: str, *, limit: int = 20) -> list[dict[str, Any]]:
        """The latest runs first."""
        query = "SELECT * FROM runs WHERE monitor = ? ORDER BY started DESC LIMIT ?"
        return [
            {**dict(row), "report": json.loads(row["report"]) if row["report"] else None}
            for row in self._db.execute(query, (monitor, limit))
        ]


class Changes(View):
    """Questions to the store, and changes of it."""

    def create(self) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)

    def claim(self, monitor: str, fire: str) -> Claim:
        """Start a run, unless one of the same fire has ended or is under way."""
        query = "SELECT * FROM runs WHERE monitor = ? AND fire = ?"
        row = self._db.execute(query, (monitor, fire)).fetchone()
        if row is not None and row["report"] is not None:
            return Claim(report=json.loads(row["report"]))
        if row is not None and time.time() - row["started"] < LEASE:
            return Claim()
        self._db.execute(
            "INSERT OR REPLACE INTO runs (monitor, fire, started) VALUES (?, ?, ?)",
            (monitor, fire, time.time()),
        )
        return Claim(ours=True)

    def release(self, monitor: str, fire: str) -> None:
        """Forget a run that failed, so that the same fire may try again."""
        self._db.execute(
            "DELETE FROM runs WHERE monitor = ? AND fire = ? AND report IS NULL", (monitor, fire)
        )

    def finish(self, monitor: str, fire: str, report: Mapping[str, Any]) -> None:
        """Record a run's report; the same fire gives it again from now on."""
        self._db.execute(
            "UPDATE runs SET finished = ?, report = ? WHERE monitor = ? AND fire = ?",
            (time.time(), json.dumps(report), monitor, fire),
        )

    def pause(self, monitor: str, paused: bool = True) -> bool:
        """Let a monitor rest, or go on. False if it already did."""
        was = self.state(monitor)
        if was.paused == paused:
            return False
        self.save(dataclasses.replace(was, paused=paused))
        return True

    def save(self, state: State) -> None:
        """Record where a monitor stands."""
        values = dataclasses.asdict(state) | {"calibration": json.dumps(dict(state.calibration))}
        marks = ", ".join("?" * len(values))
        self._db.execute(
            f"INSERT OR REPLACE INTO monitors ({', '.join(values)}) VALUES ({marks})",  # noqa: S608
            tuple(values.values()),
        )

    def add_story(self, monitor: str, story: Story) -> bool:
        """Record a story. False if it was there: another run was quicker."""
        fingerprint = story.fingerprint
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO stories VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                monitor,
                story.id,
                story.ts,
                story.text,
                story.source,
                fingerprint.exact,
                f"{fingerprint.simhash:016x}",
                fingerprint.figures,
                story.duplicate_of,
                story.topic,
                story.label,
                story.p_negative,
                json.dumps(story.entities),
            ),
        )
        return cursor.rowcount == 1

    def add_point(self, monitor: str, key: Key, start: int, point: Point) -> None:
        """Add to one bucket of one series."""
        self._db.execute(
            "INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "raw = raw + excluded.raw, total = total + excluded.total, "
            "negative = negative + excluded.negative, positive = positive + excluded.positive",
            (
                monitor,
                key.topic,
                key.entity,
                start,
                point.raw,
                point.total,
                point.negative,
                point.positive,
            ),
        )

    def save_tracks(self, monitor: str, tracks: Mapping[Key, Mapping[str, Any]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO tracks VALUES (?, ?, ?, ?)",
            [(monitor, key.topic, key.entity, json.dumps(t)) for key, t in tracks.items()],
        )

    def save_alert(self, alert: Mapping[str, Any], *, delivered: bool) -> None:
        """Record an alert as it now is."""
        self._db.execute(
            "INSERT OR REPLACE INTO alerts VALUES (?, ?, ?, ?, ?)",
            (
                alert["alert_id"],
                alert["monitor"],
                alert["window"]["start"],
                delivered,
                json.dumps(alert),
            ),
        )

    def mark_delivered(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Record that these changes were told; one that came in since is still to be told."""
        self._db.executemany(
            "UPDATE alerts SET delivered = 1 WHERE id = ? AND json_extract(body, '$.change') = ?",
            [(alert["alert_id"], alert["change"]) for alert in alerts],
        )

    def forget(self, monitor: str, before: float) -> None:
        """Drop texts and counts from before a time; alerts stay, with their examples."""
        self._db.execute("DELETE FROM stories WHERE monitor = ? AND ts < ?", (monitor, before))
        self._db.execute("DELETE FROM points WHERE monitor = ? AND start < ?", (monitor, before))

    def forget_runs(self, monitor: str, before: float) -> None:
        """Drop the reports of runs that started before a time by the clock."""
        self._db.execute("DELETE FROM runs WHERE monitor = ? AND started < ?", (monitor, before))
