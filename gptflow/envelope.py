"""Envelopes: the wire form of a job, whichever language sends it."""

from __future__ import annotations

import os
import time
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from gptflow import validation
from gptflow.errors import InvalidInput
from gptflow.request import JobClass

MAX_CUSTOM_ID = 256
"""Characters of a caller's own name for a row of a batch."""

MAX_STEPS = 64
"""Jobs that can follow a job."""

MAX_GROUP = 10_000
"""Jobs whose outputs can be gathered for the one that follows them."""

ID_PATTERN = r"^(job|batch)_[0-9a-f-]{8,64}$"


def new_id(kind: Literal["job", "batch"] = "job") -> str:
    """`job_` and a UUIDv7 (RFC 9562): ids sort by the time they were made."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    digits = f"{value:032x}"
    return f"{kind}_{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Item(BaseModel):
    """One row of a batch: its place in it, the caller's own id, and the task's input."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    index: int = Field(ge=0)
    custom_id: str = Field(max_length=MAX_CUSTOM_ID)
    input: Any


class Join(BaseModel):
    """A job's place in a group that is waited for: what follows gets the outputs of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str = Field(pattern=r"^[0-9a-f-]{8,64}$")
    index: int = Field(ge=0)
    size: int = Field(ge=1, le=MAX_GROUP)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.index >= self.size:
            raise ValueError("index must be below size")
        return self


class Step(BaseModel):
    """A job that is enqueued once the one before it is done, with its output in the input."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, ser_json_inf_nan="constants"
    )

    id: str = Field(default_factory=new_id, pattern=ID_PATTERN)
    task: str = Field(max_length=128, description="which task to run")
    input: dict[str, Any] | None = Field(None, description="the rest of the input, beside `into`")
    take: str | None = Field(
        None, max_length=256, description="the output's field to pass on; all of it by default"
    )
    into: str | None = Field(
        None, max_length=256, description="the input's field to put it into; all by default"
    )
    job_class: JobClass | None = Field(None, alias="class", description="the first job's else")
    seed: int | None = Field(None, ge=0, lt=2**63, description="of the random draws")
    stream: bool = Field(False, description="publish the text as it is decoded")
    wait: FiniteFloat | None = Field(None, gt=0, description="seconds to wait before it may run")
    timeout: FiniteFloat | None = Field(
        None, gt=0, description="seconds from when it may run after which it is of no use"
    )
    join: Join | None = Field(None, description="a group that it is part of")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.input is not None and self.into is None:
            raise ValueError("input needs into: the field for what the job before gave")
        return self


class Envelope(BaseModel):
    """A job as it travels. Exactly one of `input`, `input_ref` and `items` is given."""

    # Infinity must not turn into null on its way to the check that refuses it.
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, ser_json_inf_nan="constants"
    )

    v: Literal[1] = 1
    id: str = Field(default_factory=new_id, pattern=ID_PATTERN)
    task: str = Field(max_length=128, description="which task to run")
    input: Any = Field(None, description="the task's input")
    input_ref: str | None = Field(None, description="the key of an input over the inline limit")
    input_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of what `input_ref` refers to"
    )
    items: tuple[Item, ...] | None = Field(None, description="some rows of a batch")
    batch: str | None = Field(None, pattern=ID_PATTERN, description="the batch the items are of")
    key: str | None = Field(
        None, max_length=256, description="idempotency key, per tenant and task"
    )
    tenant: str = Field("default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    job_class: JobClass = Field("standard", alias="class")
    seed: int | None = Field(None, ge=0, lt=2**63, description="of the random draws")
    stream: bool = Field(False, description="publish the text as it is decoded")
    deadline: FiniteFloat | None = Field(None, description="Unix time after which it is of no use")
    not_before: FiniteFloat | None = Field(
        None, description="Unix time before which it must not run"
    )
    trace: dict[str, str] = Field(default_factory=dict, description="W3C trace context")
    then: tuple[Step, ...] = Field(
        (), max_length=MAX_STEPS, description="jobs to enqueue after it, one after the other"
    )
    join: Join | None = Field(None, description="a group that it is part of")

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [
            self.input is not None,
            self.input_ref is not None,
            self.items is not None,
        ]
        if sum(given) != 1:
            raise ValueError("exactly one of input, input_ref and items must be given")
        if (self.items if self.batch is None else self.input) is not None:
            raise ValueError("items and batch go together")
        if self.batch is not None and (self.then or self.join):
            raise ValueError("nothing can follow the items of a batch")
        if self.key is not None and (self.then or self.join):
            # An earlier job's steps have other ids than those that the caller waits for.
            raise ValueError("a job with a key cannot be part of a chain")
        return self

    def to_wire(self) -> dict[str, Any]:
        """The JSON object to send; fields at their default are left out, but for `v`."""
        return {"v": self.v, "id": self.id} | self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True
        )

    @classmethod
    def from_wire(cls, data: Any) -> Self:
        """Check an envelope that came from outside.

        Raises:
            InvalidInput: it is of another version or malformed.
        """
        if isinstance(data, dict) and data.get("v", 1) != 1:
            raise InvalidInput(
                f"Envelope version {data['v']!r} is not understood; this worker reads version 1.",
                hint="Upgrade the worker.",
            )
        return cls._checked(data, "Malformed envelope")

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Make an envelope.

        Raises:
            InvalidInput: a field does not fit.
        """
        return cls._checked(fields, "The job cannot be sent")

    @classmethod
    def _checked(cls, data: Any, complaint: str) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            told = validation.explain(error, data, whole="the envelope")
            raise InvalidInput(f"{complaint}: {told}.") from None
