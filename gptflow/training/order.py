"""Orders: a training as it travels through the queue, and what data it may name.

Whoever may enqueue trainings could otherwise have a worker read any file. So a worker reads only
files in the folders that its settings name (`train_data`), none by default, and only those whose
hash is the one that was ordered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gptflow.errors import DataForbidden
from gptflow.task import Input
from gptflow.training.data.source import Kind, Source
from gptflow.training.runs import DataFile
from gptflow.training.settings import TrainingSettings

TASK = "train.run"
"""Of the queue of trainings."""

_SETTING = "GPTFLOW_TRAIN_DATA"
_NAME = 200
"""Characters of a data set's name or licence."""


class Order(Input):
    """A training, or one to go on with.

    Attributes:
        run: to go on with; nothing else is given then.
        model: the name of the model that the worker must have.
        parent: an adapter of the worker's store to go on from.
    """

    run: Annotated[str, Field(max_length=100)] | None = None
    task: Annotated[str, Field(max_length=128)] = ""
    adapter: Annotated[str, Field(max_length=64)] | None = None
    model: Annotated[str, Field(max_length=4096)] = ""
    data: Annotated[tuple[DataFile, ...], Field(max_length=100)] = ()
    settings: TrainingSettings = TrainingSettings()
    gates: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    track: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    parent: Annotated[str, Field(max_length=200)] | None = None

    @field_validator("data")
    @classmethod
    def _readable(cls, data: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        for file in data:
            if file.kind not in get_args(Kind):
                raise ValueError(f"there are no rows of the kind {file.kind!r}")
            if max(len(file.name), len(file.licence)) > _NAME:
                raise ValueError(f"a name or a licence has more than {_NAME} characters")
            try:
                Source(**file.source)
            except TypeError as error:
                raise ValueError(f"source: {error}") from None
        return data

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.run is None) != bool(self.task and self.data):
            raise ValueError("either run, or task and data")
        return self


class Job(BaseModel):
    """What a worker gives the process that trains.

    Attributes:
        id: of the job in the queue.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    order: Order


def require_allowed(data: Sequence[DataFile], folders: Sequence[Path]) -> None:
    """Refuse data outside these folders, by whatever links it is reached.

    Raises:
        DataForbidden: names the first such file.
    """
    allowed = [folder.resolve() for folder in folders]
    for file in data:
        path = Path(file.path).resolve()
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise DataForbidden(
                f"A training worker here may not read {file.path}."
                if allowed
                else "A training worker here may not read any files.",
                hint=f"Put the data into a folder that {_SETTING} of the worker names."
                if allowed
                else f"Set {_SETTING} of the worker to the folders that hold data to train on.",
            )


def describe(event: Mapping[str, Any]) -> str | None:
    """One line for people about an event of a training; None for those that say nothing new."""
    match event:
        case {"kind": "note", "text": str(text)}:
            return text
        case {"kind": "run", "run": str(run)}:
            return f"run {run}"
        case {"kind": "lower", "done": done, "total": total}:
            return f"lower layers: {done}/{total} tokens"
        case {"kind": "step", "step": step, "steps": steps, "loss": loss}:
            figures = "".join(
                f", {name} {value:.4f}" for name, value in (event.get("figures") or {}).items()
            )
            speed = event.get("tokens_per_s", 0.0)
            return f"step {step}/{steps}: loss {loss:.4f}{figures}, {speed:.0f} tokens/s"
    return None
