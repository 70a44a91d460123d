"""Celery's result backend, on the ledger: what `AsyncResult` says is what the record says.

Nothing is written here: a worker records how a job ended before Celery hears of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError

from gptflow.errors import InvalidInput, JobFailed, JobNotFound
from gptflow.queue.store import BLOCK
from gptflow.result import Result, State, from_info

if TYPE_CHECKING:
    from gptflow.queue.app import App

_STATES: dict[State, str] = {
    "queued": states.PENDING,
    "running": states.STARTED,
    "done": states.SUCCESS,
    "failed": states.FAILURE,
    "dead": states.FAILURE,
    "expired": states.FAILURE,
    "cancelled": states.REVOKED,
}

CHORD_SIZE = "chord_size"
"""In the signature of a chord's body: how many jobs are in its header."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = len("job_xxxxxxxx-xxxx-")


def job_id_of(task_id: str) -> str:
    """The job of a Celery task id: the same id, or that with `job_` before it.

    Raises:
        InvalidInput: it is neither a job's id nor a UUID.
    """
    if task_id.startswith("job_"):
        return task_id
    if _UUID.fullmatch(task_id):
        return f"job_{task_id}"
    raise InvalidInput(f"Task id {task_id[:80]!r} is neither a job's id nor a UUID.")


def may_come(job_id: str) -> bool:
    """Whether a job without a record may get one yet: later steps of a canvas have such ids.

    Celery makes random ids (UUID version 4), before anything is sent; ours (version 7) are made
    when a job is, so that one without a record has lost it.
    """
    return job_id[_VERSION : _VERSION + 1] != "7"


class LedgerBackend(BaseBackend):
    """Reads the records of jobs. Thread-safe."""

    supports_autoexpire = True
    supports_native_join = False
    persistent = True

    app: App

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        transport, job_id = self.app.transport, job_id_of(task_id)
        try:
            record = transport.job(job_id)
            result = transport.store.result(job_id)
            if result is not None and record.finished is None:  # it has ended in between
                record = transport.job(job_id)
        except JobNotFound:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        if result is not None:
            return self._ended(task_id, result, record.finished)
        meta = {"task_id": task_id, "status": _STATES[record.state], "result": None}
        return meta | {"name": record.task, "worker": record.worker}

    def _ended(self, task_id: str, result: Result, finished: float | None) -> dict[str, Any]:
        value = result.output
        if not result.ok:
            error = result.error
            value = from_info(error) if error else JobFailed(f"It ended as {result.state}.")
        done = None if finished is None else datetime.fromtimestamp(finished, UTC)
        return {
            "task_id": task_id,
            "status": _STATES[result.state],
            "result": value,
            "traceback": None,
            "children": [],
            "date_done": done,
            "name": result.task,
        }

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        """Wait for a job's end by reading its stream.

        Raises:
            celery.exceptions.TimeoutError: it did not end in time.
            JobNotFound: there is no record of it, and none will come.
        """
        store, job_id = self.app.transport.store, job_id_of(task_id)
        until = None if timeout is None else time.monotonic() + timeout
        place = "0"
        while True:
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if "name" not in meta and not may_come(job_id):
                store.job(job_id)  # raises, unless it has come meanwhile
            if on_interval is not None:
                on_interval()
            left = BLOCK if until is None else min(BLOCK, until - time.monotonic())
            if left <= 0:
                raise CeleryTimeoutError(f"Job {job_id} did not end within {timeout:g} seconds.")
            # A stream that does not exist yet can be waited for as well.
            events = store.read_events(job_id, place, left)
            place = events[-1].id if events else place

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        return meta

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        # What follows is in the envelopes of the header's jobs, which need to know their number.
        body[CHORD_SIZE] = len(list(header_result_args[1]))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        pass

    def ensure_chords_allowed(self) -> None:
        pass

    def store_result(self, task_id: str, result: Any, state: str, *_: Any, **__: Any) -> Any:
        return result

    def forget(self, task_id: str) -> None:
        """Records expire by themselves."""

    def cleanup(self) -> None:
        pass

    def process_cleanup(self) -> None:
        pass
