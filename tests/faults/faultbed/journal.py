"""Journal: the test's own record of what it submitted and what it was told of the ends."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable
from typing import Any

import redis

from faultbed.notes import Notes
from faultbed.tally import Tally
from gptflow.client import Client
from gptflow.config import Settings
from gptflow.envelope import new_id
from gptflow.errors import BrokerUnavailable
from gptflow.job import Job
from gptflow.queue.transport import RedisTransport
from gptflow.result import TERMINAL

PATIENCE = 120.0
"""Seconds for what takes a moment on a machine that has nothing else to do."""

_SLICE = 500


class Journal:
    """Submits jobs, and follows the ledger's journal of ends from a thread of its own.

    Each result is read when its end is announced, and once more by `check`: an outcome that
    changed in between is a doubled one.

    Args:
        settings: how to reach the server, past any proxy that the workers use.
    """

    def __init__(self, settings: Settings) -> None:
        self.client = Client(settings=settings)
        self.submitted: dict[str, float] = {}
        self.ends: dict[str, list[tuple[str, float]]] = collections.defaultdict(list)
        self.results: dict[str, str] = {}
        self.refused = 0
        self._store = RedisTransport(settings).store
        self._keys = self._store.keys
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)
        self._thread.start()

    def submit(self, task: str, input: Any, **options: Any) -> Job:
        """Submit one job; once this returns, it must not get lost."""
        job = self.client.submit(task, input, **options)
        self.submitted.setdefault(job.id, time.time())
        return job

    def submit_surely(self, task: str, input: Any, **options: Any) -> Job:
        """Submit one job, again and again until the server says that it has it."""
        key = new_id()
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.submit(task, input, key=key, **options)
            except BrokerUnavailable:
                # It is the machine that is busy, and that is not what is tested.
                self.refused += 1
                if time.monotonic() > until:
                    raise

    def wait(self, ids: Iterable[str] | None = None, seconds: float = PATIENCE) -> None:
        """Wait until jobs have ended; by default all that were submitted."""
        waited = set(self.submitted if ids is None else ids)
        self.until(lambda: waited <= self.ends.keys(), seconds, what=waited)

    def until(self, condition: Any, seconds: float, *, what: Any = ()) -> None:
        """Wait until something is so that ends can change."""
        with self._news:
            if not self._news.wait_for(condition, seconds):
                left = sorted(set(what) - self.ends.keys())
                states = collections.Counter(row["state"] for row in self.read(left).values())
                raise AssertionError(f"{len(left)} have not ended in {seconds:g} s: {states}")

    def read(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records, as they are now."""
        names = ("state", "fence", "attempt", "crashes", "worker", "started", "submitted", "result")
        ids = list(ids)
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), _SLICE):
            part = ids[start : start + _SLICE]
            with self._store.client.pipeline(transaction=False) as pipe:
                for job_id in part:
                    pipe.hmget(self._keys.job(job_id), names)
                rows = pipe.execute()
            found |= {
                i: dict(zip(names, row, strict=True)) for i, row in zip(part, rows, strict=True)
            }
        return found

    def check(self, row: str, notes: Notes | None = None) -> Tally:
        """Compare what is recorded with what was submitted and seen."""
        records = self.read(self.submitted)
        ended = {i: r for i, r in records.items() if r["state"] in TERMINAL and r["result"]}
        runs = notes.runs() if notes is not None else {}
        doubled, again = set(), set()
        for job_id, record in ended.items():
            ends, first_read = self.ends.get(job_id, ()), self.results.get(job_id)
            if (
                len(ends) > 1
                or any(state != record["state"] for state, _ in ends)
                or first_read not in (None, record["result"])
            ):
                doubled.add(job_id)
            if int(record["fence"]) > 1 or len(runs.get(job_id, ())) > 1:
                again.add(job_id)
            # A claim is an attempt, a crash, or was handed back.
            claims = int(record["attempt"]) + int(record["crashes"])
            assert claims <= int(record["fence"]), record
        if self.refused:
            print(f"{row}: the server was silent {self.refused} times while jobs were sent")
        return Tally(
            row=row,
            submitted=len(self.submitted),
            recorded=len(ended),
            lost=len(records) - len(ended),
            doubled=len(doubled),
            recovered=len(again),
        )

    def states(self) -> collections.Counter[str]:
        return collections.Counter(row["state"] for row in self.read(self.submitted).values())

    def ended_at(self) -> list[float]:
        """When ends were announced, in order."""
        return sorted(at for ends in list(self.ends.values()) for _, at in ends)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._store.close()
        self.client.close()

    def _follow(self) -> None:
        place = "0"
        while not self._stopping.is_set():
            try:
                place = self._read_on(place)
            except (redis.RedisError, OSError):
                self._stopping.wait(0.1)

    def _read_on(self, place: str) -> str:
        reply = self._store.client.xread({self._keys.journal: place}, block=100, count=_SLICE)
        entries = [
            e
            for _, found in (reply.items() if isinstance(reply, dict) else reply)
            for e in _flat(found)
        ]
        if not entries:
            return place
        ids = [fields["id"] for _, fields in entries]
        with self._store.client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(self._keys.job(job_id), "result")
            results = pipe.execute()
        with self._news:
            for (_, fields), result in zip(entries, results, strict=True):
                self.ends[fields["id"]].append((fields["state"], time.time()))
                if result is not None:
                    self.results.setdefault(fields["id"], result)
            self._news.notify_all()
        return entries[-1][0]


def _flat(entries: Any) -> Any:
    for entry in entries:
        if isinstance(entry, list):
            yield from _flat(entry)
        else:
            yield entry
