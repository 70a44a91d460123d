"""A request in flight: the sequences that it waits for, and how its answer is put together."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Sequence
from gptflow.errors import EngineError, GPTFlowError, raised_at
from gptflow.heads import Raw
from gptflow.request import Request

log = logging.getLogger(__name__)


class BaselineKey(NamedTuple):
    """A content-free prompt, the continuations to score under it, and the LoRA weights' key."""

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    lora: str = ""


@dataclasses.dataclass(slots=True, eq=False, weakref_slot=True)
class Pending:
    """What the engine knows of one request. Only the engine's thread changes it.

    The future stays pending, in the sense of `concurrent.futures`, until its answer is
    there: so its owner can cancel it at any time.

    Attributes:
        sequences: those to run for it.
        answer: makes the result when all of them have ended.
        baseline: scores it needs besides, which other requests may need too.
        submitted_at: when it was prepared, by `time.perf_counter`.
        leave: called before the future is settled, so that who waits for it finds the request
            gone.
        closed: it has its answer, or will never have one.
    """

    request: Request
    sequences: list[Sequence]
    answer: Callable[[Scoring | None], Raw]
    baseline: BaselineKey | None = None
    future: Future[Raw] = dataclasses.field(default_factory=Future)
    scored_baseline: Scoring | None = None
    submitted_at: float = dataclasses.field(default_factory=time.perf_counter)
    leave: Callable[[], None] = lambda: None
    open: int = 0
    closed: bool = False

    def resolve(self) -> None:
        """Set the result. Called off the engine's thread: it decodes and parses."""
        try:
            result = self.answer(self.scored_baseline)
        except Exception as error:  # noqa: BLE001  the future carries it
            self.fail(told(error, "answering", self.request.id))
        else:
            self.leave()
            succeed(self.future, result)

    def fail(self, error: GPTFlowError) -> None:
        """Set the exception."""
        self.leave()
        fail(self.future, error)


def told(error: Exception, doing: str, requests: str) -> GPTFlowError:
    """What to tell the caller of a request: never an exception's own words, which may quote."""
    if isinstance(error, GPTFlowError):
        return error
    name = type(error).__name__
    log.error("%s %s raised %s (%s)", doing, requests, name, raised_at(error, "gptflow"))
    return EngineError(f"{doing.capitalize()} the request failed: {name}.")


def succeed(future: Future[Any], result: object) -> None:
    """Set the result, unless the future was cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_result(result)


def fail(future: Future[Any], error: GPTFlowError) -> None:
    """Set the exception, unless the future was cancelled."""
    _forget_frames(error)
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _forget_frames(error: BaseException) -> None:
    """Drop the frames that an exception came through: they hold what was computed there."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
