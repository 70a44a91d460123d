"""OpenBatch: a batch that is still being given rows, however many there will be."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from gptflow import validation
from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import BrokerUnavailable, GPTFlowError, InvalidInput, JobCancelled, QueueFull
from gptflow.job import Batch
from gptflow.number_set import NumberSet
from gptflow.packing import Packer, estimate_tokens
from gptflow.request import JobClass
from gptflow.tracing import trace_context
from gptflow.transport import BatchRecord, Transport

_MESSAGES_AT_ONCE = 16
"""Messages that are sent together. Until so many have gathered, nothing has been sent."""

_LONGEST_WAIT = 1.0
"""Seconds between two attempts where the queue is full: it is asked for some room only, and
says when all that waits will have been done."""

_PATIENCE = 60.0
_PAUSE = 0.5
"""Seconds for which a batch that was begun waits for Redis to come back, and between attempts."""

_ROW_FIELDS = frozenset({"custom_id", "input"})


class OpenBatch:
    """Packs rows into messages and sends them as they come; a few are in memory at a time.

    Made by `Client.open_batch`. While the queue is full, sending waits and goes on; so it does
    while Redis restarts. Not to be shared among threads, but for `stop`.

        with flow.open_batch("sentiment.classify") as batch:
            for post in posts:
                batch.add(post)
        for number, result in batch.handle.as_completed(): ...

    Leaving the block seals the batch; leaving it by an exception cancels it.

    Args:
        batch_id: of a batch that was begun before with the same rows: what it has been given
            already is not run again.
        wait: whether to wait for a queue that is full at the very first message, too.
        limit: bytes of one row at most.
    """

    def __init__(
        self,
        transport: Transport,
        task: str,
        *,
        tenant: str,
        job_class: JobClass,
        seed: int | None,
        wait: bool,
        limit: int,
        batch_id: str | None = None,
    ) -> None:
        self.id = batch_id or new_id("batch")
        self._transport = transport
        self._options: dict[str, Any] = {"tenant": tenant, "job_class": job_class, "seed": seed}
        self._task = task
        self._trace = trace_context()  # here: another thread may add the rows
        Envelope.of(task=task, input="", **self._options)  # what does not fit is refused here
        self._wait = wait
        self._limit = limit
        self._packer: Packer[Item] = Packer()
        self._messages: list[Envelope] = []
        self._count = 0
        self._stopped = threading.Event()
        self._opened = batch_id is not None
        self._ended = transport.ended_items(batch_id) if batch_id is not None else NumberSet()

    @property
    def handle(self) -> Batch:
        """For waiting for results, while rows are still being added or later."""
        return Batch(self.id, self._transport)

    @property
    def count(self) -> int:
        """How many rows it has been given."""
        return self._count

    def begin(self) -> None:
        """Record the batch now, and not with the first message, so that others can see it.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        if not self._opened:
            tenant = self._options["tenant"]
            record = BatchRecord(id=self.id, task=self._task, submitted=time.time(), tenant=tenant)
            self._transport.open_batch(record)
            self._opened = True

    def add(self, row: Any) -> int:
        """Give it a row: a bare input, with an `id` or without, or `{"custom_id", "input"}`.

        Returns:
            The row's number, counting from 0.

        Raises:
            InvalidInput: it is not JSON or too large. The batch is as it was.
            QueueFull: nothing has been accepted yet, and `wait` is off.
            JobCancelled: somebody has cancelled the batch.
            BrokerUnavailable: Redis does not answer.
        """
        number = self._count
        custom_id, value = split_row(row, str(number))
        text, item = self._checked(number, custom_id, value)
        full = self._packer.add(item, estimate_tokens(text))
        self._count += 1
        if full:
            self._put(full)
        return number

    def seal(self) -> Batch:
        """Send what is left, and say that this was all.

        Raises:
            InvalidInput: it was given no rows.
            QueueFull, JobCancelled, BrokerUnavailable: as for `add`.
        """
        if not self._count:
            raise InvalidInput("The batch is empty.")
        if rest := self._packer.rest():
            self._put(rest)
        self._send()
        self._patiently(lambda: self._transport.seal_batch(self.id, self._count))
        return self.handle

    def cancel(self) -> bool:
        """Stop it; results that are there stay. False if nothing was to be stopped."""
        self.stop()
        return self._opened and self._transport.cancel(self.id)

    def stop(self) -> None:
        """Have a call that waits for the queue end with `JobCancelled`, from another thread."""
        self._stopped.set()

    def __enter__(self) -> OpenBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self.seal()
            except BaseException:
                self._drop()
                raise
        else:
            self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(GPTFlowError):  # there is an error to tell already
            self.cancel()

    def _checked(self, number: int, custom_id: str, value: Any) -> tuple[str, Item]:
        what = f"Row {number} for task {self._task!r}"
        value = as_json(value, what)
        fields = {"index": number, "custom_id": custom_id, "input": value}
        try:
            item = Item.model_validate(fields)
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValidationError as error:
            told = validation.explain(error, fields, whole="the row")
            raise InvalidInput(f"{what} cannot be sent: {told}.") from None
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{what} is not JSON: {error}.") from None
        if (size := len(text.encode("utf-8", "surrogatepass"))) > self._limit:
            raise InvalidInput(
                f"{what} takes {size} bytes; {self._limit} are allowed.",
                hint="Send less, or raise GPTFLOW_MAX_PAYLOAD.",
            )
        return text, item

    def _put(self, items: Sequence[Item]) -> None:
        if all(item.index in self._ended for item in items):
            return
        message = Envelope.of(
            task=self._task,
            items=tuple(items),
            batch=self.id,
            # The same rows under the same key: whoever sends a message again does no harm.
            key=f"{self.id}/{items[0].index}-{items[-1].index}",
            trace=self._trace,
            **self._options,
        )
        self._messages.append(message)
        if len(self._messages) == _MESSAGES_AT_ONCE:
            self._send()

    def _send(self) -> None:
        messages, self._messages = self._messages, []
        if not messages:
            return
        self.begin()
        while True:
            try:
                self._patiently(lambda: self._transport.add_to_batch(self.id, messages))
            except QueueFull as full:
                if not self._wait and self._transport.batch(self.id).total == 0:
                    raise
                self._pause(min(full.retry_after, _LONGEST_WAIT))
            else:
                return

    def _patiently(self, call: Any) -> None:
        since = time.monotonic()
        while True:
            try:
                call()
            except BrokerUnavailable:
                if time.monotonic() - since > _PATIENCE:
                    raise
                self._pause(_PAUSE)
            else:
                return

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise JobCancelled(f"Batch {self.id} was stopped.")


def split_row(row: Any, name: str) -> tuple[str, Any]:
    """A batch row's own id and its input; `name` is for rows without an id."""
    if isinstance(row, Mapping):
        if "custom_id" in row and set(row) <= _ROW_FIELDS:
            return str(row["custom_id"]), row.get("input")
        if "id" in row:
            return str(row["id"]), {name: value for name, value in row.items() if name != "id"}
    return name, row


def as_json(value: Any, what: str = "The input") -> Any:
    """The value as JSON holds it; models and records become objects.

    Raises:
        InvalidInput: it is not JSON.
    """
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}.") from None
