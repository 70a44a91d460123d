"""Results: how a job ended, the same in Python, on the wire and from `--json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from gptflow.errors import ErrorInfo, GPTFlowError, JobCancelled, JobFailed

State = Literal["queued", "running", "done", "failed", "cancelled", "expired", "dead"]
TERMINAL: frozenset[State] = frozenset(("done", "failed", "cancelled", "expired", "dead"))

WIRE_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made an answer: enough to make it again.

    Attributes:
        model: `{"id": ..., "sha256": ...}` of the resident model.
        adapter: `alias@sha256` of the adapter that served, None for the base model; where
            the task's steps were served by several, all of them.
        prompt_sha256: of the task's template; None where the task used none.
        truncated: whether part of the input was cut off to fit the context.
    """

    model: Mapping[str, str]
    adapter: str | None = None
    prompt_sha256: str | None = None
    seed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    truncated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The wire form."""
        return {
            "model": dict(self.model),
            "adapter": self.adapter,
            "prompt_sha256": self.prompt_sha256,
            "seed": self.seed,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "truncated": self.truncated,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of a job.

    Attributes:
        output: the task's output as JSON; None unless `state` is `done`.
        error: why there is no output.
        abstained: why the answer is not to be relied on; None when it is.
        timings: seconds, by stage (`queued`, `running`).
        custom_id: the caller's own name for a row of a batch; None for a single job.
    """

    id: str
    task: str
    state: State
    output: Any = None
    error: ErrorInfo | None = None
    provenance: Provenance | None = None
    abstained: str | None = None
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    custom_id: str | None = None

    @classmethod
    def failure(cls, job_id: str, task: str, error: GPTFlowError, **more: Any) -> Self:
        """The result of a job that ended in an error."""
        state: State = "cancelled" if isinstance(error, JobCancelled) else "failed"
        return cls(id=job_id, task=task, state=state, error=error.info, **more)

    @property
    def ok(self) -> bool:
        return self.state == "done"

    def unwrap(self) -> Any:
        """The output.

        Raises:
            GPTFlowError: the error that the job ended in, as its own class.
        """
        if self.ok:
            return self.output
        if self.error is not None:
            raise from_info(self.error)
        raise JobFailed(f"Job {self.id} ended as {self.state}.")

    def as_dict(self) -> dict[str, Any]:
        """The wire form."""
        # By hand: `dataclasses.asdict` copies deeply, which is most of what a null job costs.
        wire: dict[str, Any] = {
            "v": WIRE_VERSION,
            "id": self.id,
            "task": self.task,
            "state": self.state,
            "output": self.output,
            "error": self.error.as_dict() if self.error else None,
            "provenance": self.provenance.as_dict() if self.provenance else None,
            "abstained": self.abstained,
            "warnings": list(self.warnings),
            "timings": dict(self.timings),
        }
        if self.custom_id is not None:
            wire["custom_id"] = self.custom_id
        return wire

    def as_row(self) -> dict[str, Any]:
        """The line of a batch's output file."""
        wire = self.as_dict()
        return {name: wire.get(name) for name in ("custom_id", "output", "error", "provenance")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the wire form; fields that this version does not know are left out."""
        values = _known(cls, data)
        if values.get("error") is not None:
            values["error"] = ErrorInfo(**_known(ErrorInfo, values["error"]))
        if values.get("provenance") is not None:
            values["provenance"] = Provenance(**_known(Provenance, values["provenance"]))
        values["warnings"] = tuple(values.get("warnings", ()))
        return cls(**values)


def _known(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    # `dataclasses.fields` looks again each time; a client reads thousands of results a second.
    names = cls.__dataclass_fields__
    return {name: value for name, value in data.items() if name in names}


def from_info(info: Mapping[str, Any] | ErrorInfo) -> GPTFlowError:
    """Rebuild the exception that a result record carries.

    A code that this version does not know becomes `JobFailed`, so that an older client
    can still read the results of a newer worker.
    """
    if not isinstance(info, ErrorInfo):
        info = ErrorInfo(str(info["code"]), str(info["message"]), info.get("hint"))
    classes: list[type[GPTFlowError]] = [GPTFlowError]
    for cls in classes:  # it grows meanwhile
        if cls.code == info.code:
            return cls(info.message, hint=info.hint)
        classes += cls.__subclasses__()
    return JobFailed(f"[{info.code}] {info.message}", hint=info.hint)
