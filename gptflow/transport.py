"""Transports: how a client reaches workers. One per URL scheme, found by name."""

from __future__ import annotations

import dataclasses
import pkgutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import ConfigError
from gptflow.number_set import NumberSet
from gptflow.result import Result, State

# By name, not by import: a caller loads only the transport that the URL asks for.
_FACTORIES = {
    "redis": "gptflow.queue.transport:RedisTransport",
    "rediss": "gptflow.queue.transport:RedisTransport",
    "unix": "gptflow.queue.transport:RedisTransport",
    "memory": "gptflow.queue.memory:MemoryTransport",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is known of a job at one moment. Times are Unix seconds.

    Attributes:
        attempt: how often it was tried; neither crashes nor hand-backs count.
        crashes: how often its worker died while it ran.
    """

    id: str
    task: str
    state: State
    tenant: str = "default"
    job_class: str = "standard"
    batch: str | None = None
    items: int | None = None
    submitted: float | None = None
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    attempt: int = 0
    crashes: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """What is known of a batch at one moment.

    Attributes:
        total: its rows; while it is open, those that it has been given so far.
        failed: rows that ended in an error, cancelled ones among them.
        sealed: whether it gets no more rows; it is open otherwise.
    """

    id: str
    task: str
    total: int = 0
    done: int = 0
    failed: int = 0
    cancelled: bool = False
    submitted: float | None = None
    tenant: str = "default"
    sealed: bool = True

    @property
    def finished(self) -> bool:
        """Whether every row has a result and no more rows will come."""
        return self.sealed and self.done + self.failed >= self.total


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """What a running worker last said of itself.

    Attributes:
        stats: the engine's; see `gptflow.request.Engine.stats`.
    """

    name: str
    pid: int
    model: str
    started: float
    in_flight: int = 0
    peak_in_flight: int = 0
    plugins: tuple[str, ...] = ()
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of a job's stream. `id` orders entries and is where to resume from.

    `delta` carries `text`; `reset` says to forget the text so far, because the job starts
    again; `gap` says that text was lost on its way, so that only the result has all of it;
    `end` is the last one.

    Attributes:
        at: at which character of the sample's text a `delta` begins.
    """

    id: str
    kind: Literal["delta", "reset", "gap", "end"]
    text: str = ""
    sample: int = 0
    at: int | None = None


class Transport(Protocol):
    """What a client needs of a queue. Blocking calls raise `BrokerUnavailable` in 5 s."""

    def submit(self, envelope: Envelope) -> str:
        """Accept a job. Returns its id: an earlier job's where the key was used before."""
        ...

    def submit_batch(self, record: BatchRecord, chunks: Sequence[Envelope]) -> None:
        """Accept a batch whose rows are all there, as messages of some items each."""
        ...

    def open_batch(self, record: BatchRecord) -> None:
        """Begin a batch that messages are added to until it is sealed."""
        ...

    def add_to_batch(self, batch_id: str, chunks: Sequence[Envelope]) -> None:
        """Accept messages of a batch. One whose key was used before is there already.

        Raises:
            QueueFull: some may have been accepted; adding all of them again does no harm.
            JobCancelled: the batch was cancelled.
        """
        ...

    def seal_batch(self, batch_id: str, total: int) -> None:
        """Say that all rows of a batch have been added, and how many they are."""
        ...

    def job(self, job_id: str) -> JobRecord:
        """Raises `JobNotFound`."""
        ...

    def batch(self, batch_id: str) -> BatchRecord:
        """Raises `JobNotFound`."""
        ...

    def result(self, job_id: str, timeout: float | None) -> Result:
        """Wait for the job's end. Raises `JobTimeout`, `JobNotFound`."""
        ...

    def batch_results(
        self, batch_id: str, timeout: float | None, stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Result]]:
        """Each item's index and result, once, as they end, until the batch is sealed and done.

        `timeout` is the longest silence; `stop` ends it early.
        """
        ...

    def events(self, job_id: str, after: str | None, timeout: float | None) -> Iterator[Event]:
        """Follow a job's stream from the entry after `after` to its end."""
        ...

    def ended_items(self, batch_id: str) -> NumberSet:
        """The numbers of a batch's items that have a result."""
        ...

    def cancel(self, job_or_batch_id: str) -> bool:
        """Ask for a stop. False if it had ended."""
        ...

    def revive(self, job_id: str) -> bool:
        """Enqueue a failed, expired or dead job once more. False if it is none."""
        ...

    def dead(self, limit: int) -> list[JobRecord]:
        """The dead jobs, the newest first."""
        ...

    def last_words(self, job_id: str) -> str:
        """What the last worker that died of a dead job had logged. Raises `JobNotFound`."""
        ...

    def purge(self, job_ids: Sequence[str]) -> int:
        """Forget dead jobs. Returns how many there were."""
        ...

    def job_input(self, job_id: str) -> Any:
        """A job's input, None where it is no longer kept. Raises `JobNotFound`."""
        ...

    def jobs(self, state: State | None, limit: int) -> list[JobRecord]:
        """The newest jobs first."""
        ...

    def workers(self) -> list[WorkerRecord]:
        """The workers that are running now."""
        ...

    def close(self) -> None: ...


def connect(settings: Settings, **inside: Any) -> Transport:
    """The transport for the settings' URL.

    Args:
        inside: what the worker inside this process is made of, for `memory://` only:
            `engine`, `registry`. None means not given.

    Raises:
        ConfigError: there is no URL, its scheme is unknown, or it takes nothing inside.
    """
    url = settings.broker_url
    if url is None:
        raise ConfigError(
            "No Redis URL is set.",
            hint="Set GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
        )
    scheme = urlsplit(url).scheme
    if scheme not in _FACTORIES:
        known = ", ".join(f"{name}://" for name in _FACTORIES)
        raise ConfigError(f"A Redis URL cannot start with {scheme!r}.", hint=f"Use one of {known}.")
    given = {name: value for name, value in inside.items() if value is not None}
    if given and scheme != "memory":
        raise ConfigError(
            f"A worker behind {scheme}:// brings its own {' and '.join(given)}.",
            hint="Use memory:// for a worker inside this process.",
        )
    factory: Any = pkgutil.resolve_name(_FACTORIES[scheme])
    transport: Transport = factory(settings, **given)
    return transport
