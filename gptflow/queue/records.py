"""Records: the forms in which jobs, batches, results and workers are kept in Redis."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from gptflow.envelope import Envelope
from gptflow.errors import InvalidOutput, JobCancelled
from gptflow.result import Result
from gptflow.transport import BatchRecord, JobRecord, WorkerRecord

_JOB_NAMES: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(JobRecord))
JOB_FIELDS: tuple[str, ...] = tuple({"job_class": "class"}.get(name, name) for name in _JOB_NAMES)
"""As the scripts name them, in the order of `JobRecord`."""
BATCH_FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(BatchRecord))
_TIMES = frozenset(("submitted", "started", "finished"))
_COUNTS = frozenset(("items", "attempt", "crashes", "total", "done", "failed"))


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def new_job(envelope: Envelope, now: float, items: int | None = None) -> JobRecord:
    """The record of a job that was just submitted."""
    return JobRecord(
        id=envelope.id,
        task=envelope.task,
        state="queued",
        tenant=envelope.tenant,
        job_class=envelope.job_class,
        batch=envelope.batch,
        items=items,
        submitted=now,
    )


def flatten(record: BatchRecord) -> dict[str, str]:
    """The record as a Redis hash; what is not known is left out."""
    values = {
        name: value for name, value in dataclasses.asdict(record).items() if value is not None
    }
    return {
        name: str(int(value)) if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }


def read_job(values: Sequence[str | None]) -> JobRecord:
    """A record from the values of `JOB_FIELDS`."""
    return JobRecord(**_typed(dict(zip(_JOB_NAMES, values, strict=True))))


def read_batch(values: Sequence[str | None]) -> BatchRecord:
    """A record from the values of `BATCH_FIELDS`."""
    typed = _typed(dict(zip(BATCH_FIELDS, values, strict=True)))
    flags = {"cancelled": typed.get("cancelled") == "1", "sealed": typed.get("sealed") != "0"}
    return BatchRecord(**typed | flags)


def _typed(values: Mapping[str, str | None]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None:
            number = float if name in _TIMES else int if name in _COUNTS else str
            typed[name] = number(value)
    return typed


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """A result, and the text in which it is kept."""

    result: Result
    text: str

    @classmethod
    def of(cls, result: Result, *, limit: int | None = None) -> Self:
        """What becomes of a result: where its output cannot be kept, a failure that says so.

        Args:
            limit: characters of the text at most.
        """
        try:
            text = encode(result)
            if limit is not None and len(text) > limit:
                raise InvalidOutput(
                    f"The output of task {result.task!r} takes {len(text)} characters; "
                    f"{limit} are allowed.",
                    hint="Give back less, or raise GPTFLOW_MAX_PAYLOAD for the workers.",
                )
        except InvalidOutput as error:
            failure = Result.failure(result.id, result.task, error, custom_id=result.custom_id)
            return cls(failure, encode(failure))
        return cls(result, text)


def encode(result: Result) -> str:
    """The result as JSON.

    Raises:
        InvalidOutput: the task's output is not JSON; NaN and infinity are not either.
    """
    try:
        return _ENCODER.encode(result.as_dict())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidOutput(f"The output of task {result.task!r} is not JSON: {error}.") from None


def decode(text: str) -> Result:
    return Result.from_dict(json.loads(text))


def encode_worker(record: WorkerRecord) -> str:
    return json.dumps(dataclasses.asdict(record))


def decode_worker(text: str) -> WorkerRecord:
    """Read a worker's record; fields that this version does not know are left out."""
    data = json.loads(text)
    known = {field.name for field in dataclasses.fields(WorkerRecord)}
    values = {name: value for name, value in data.items() if name in known}
    return WorkerRecord(**values | {"plugins": tuple(values["plugins"])})


def item_id(batch_id: str, index: int) -> str:
    """The id of one row of a batch, as its result carries it."""
    return f"{batch_id}/{index}"


def item_names(wire: str | None, aside: str | None) -> dict[int, str]:
    """The items in a message, from their numbers to their custom ids.

    Args:
        wire: its envelope as JSON; None where it is gone.
        aside: what the envelope's `input_ref` refers to.
    """
    items = json.loads(aside) if aside else json.loads(wire or "{}").get("items", ())
    return {item["index"]: item["custom_id"] for item in items}


def job_input(wire: str | None, aside: str | None) -> Any:
    """The input in a job's message, the rows of a batch's; None where it is gone.

    Args:
        wire, aside: as for `item_names`.
    """
    if aside:
        return json.loads(aside)
    envelope = json.loads(wire or "{}")
    return envelope.get("items", envelope.get("input"))


def cancelled(job_id: str, task: str, custom_id: str | None = None) -> Result:
    """The result of a job, or a row of a batch, that was cancelled."""
    error = JobCancelled(f"Job {job_id} was cancelled.")
    return Result.failure(job_id, task, error, custom_id=custom_id)
