"""The report: one model's figures, each beside its floors, as JSON, Markdown and pictures."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gptflow.errors import UnreadableFile
from gptflow.training.evaluation.bootstrap import Comparison, Interval

JSON = "report.json"
MARKDOWN = "report.md"

Number = float | None
"""A figure; null where it is not defined, as JSON has no NaN."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A figure and the bounds of its 95 % interval."""

    value: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, interval: Interval) -> Self:
        return cls(
            value=_finite(interval.value), low=_finite(interval.low), high=_finite(interval.high)
        )

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class AgainstFloor(_Strict):
    """The model's primary figure minus that of the best floor, on the same rows.

    Attributes:
        p: the share of resamples in which the model is not better.
    """

    floor: str
    metric: str
    difference: Figure
    p: float

    @classmethod
    def of(cls, floor: str, comparison: Comparison) -> Self:
        return cls(
            floor=floor,
            metric=comparison.metric,
            difference=Figure.of(comparison.difference),
            p=comparison.p,
        )


class ClassRow(_Strict):
    """One line of a per-class table."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(_Strict):
    """Right label by answer. The last column counts answers that are none of the labels."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class ReliabilityBin(_Strict):
    """Answers of about one confidence."""

    low: float
    high: float
    count: int
    confidence: Number
    accuracy: Number


class Calibration(_Strict):
    """How far confidence is from accuracy, on the test rows.

    Attributes:
        temperature: fitted on the development split; 1 where there was none.
        ece_before: the expected calibration error at temperature 1.
        ece: at `temperature`.
        bins: at `temperature`.
    """

    temperature: float
    ece_before: float
    ece: float
    nll_before: float
    nll: float
    bins: tuple[ReliabilityBin, ...]


class Slice(_Strict):
    """Some of the rows, and how the model and its best floor do on them."""

    by: str
    name: str
    rows: int
    value: Number
    floor: Number


class Worst(_Strict):
    """One of the worst errors.

    Attributes:
        where: file and line, or the name of a query.
        score: how sure the model was, or how far off.
    """

    where: str
    text: str
    right: str
    answer: str
    score: float


class Report(_Strict):
    """What an evaluation says. `write` and `load` are each other's inverse.

    Attributes:
        primary: the figure by which the model and its floors are compared.
        floors: by name, the floors' figures on the same rows.
    """

    version: Literal[1] = 1
    kind: Literal["labels", "tags", "rankings", "samples"]
    title: str
    rows: int
    primary: str
    metrics: Mapping[str, Figure]
    floors: Mapping[str, Mapping[str, Figure]] = {}
    against_floor: AgainstFloor | None = None
    classes: tuple[ClassRow, ...] = ()
    tokens: tuple[ClassRow, ...] = ()
    tokens_without_o: tuple[ClassRow, ...] = ()
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    slices: tuple[Slice, ...] = ()
    worst: tuple[Worst, ...] = ()

    @property
    def best_floor(self) -> str | None:
        """The floor with the best primary figure."""
        return self.against_floor.floor if self.against_floor else None

    @property
    def floor_wins(self) -> bool:
        """Whether a floor is as good as the model or better, so that it had better serve."""
        if self.against_floor is None:
            return False
        gap = self.against_floor.difference.value
        return gap is None or gap <= 0

    def value(self, metric: str) -> float:
        """One figure; `ece` is that of the calibration.

        Raises:
            KeyError: there is no such figure.
        """
        if metric == "ece" and self.calibration is not None:
            return self.calibration.ece
        value = self.metrics[metric].value
        return math.nan if value is None else value

    def missed(self, gates: Mapping[str, float]) -> tuple[str, ...]:
        """The gates that the model does not reach, in words; `ece` must be at most its gate."""
        words = []
        for metric, gate in gates.items():
            value = self.value(metric)
            at_most = metric == "ece"
            if not (value <= gate if at_most else value >= gate):
                words.append(f"{metric} is {value:.3f}, not {'≤' if at_most else '≥'} {gate:g}")
        return tuple(words)

    def without_texts(self) -> Self:
        """The same without the rows' texts, for a place where the data may not go."""
        return self.model_copy(
            update={"worst": tuple(w.model_copy(update={"text": ""}) for w in self.worst)}
        )

    def as_dict(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return self.model_dump(mode="json")

    def to_markdown(self) -> str:
        """A page for people."""
        from gptflow.training.evaluation.markdown import render

        return render(self)

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write `report.json`, `report.md` and the pictures that the report gives rise to.

        Each file appears whole or not at all; those of an earlier report are replaced.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        from gptflow.training.evaluation.plots import pictures

        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            JSON: (self.model_dump_json(indent=2) + "\n").encode(),
            MARKDOWN: self.to_markdown().encode(),
            **pictures(self),
        }
        for name, content in contents.items():
            write_whole(folder / name, content)
        return tuple(folder / name for name in contents)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report: its folder, or its `report.json`.

        Raises:
            UnreadableFile: there is none, or it is not a report.
        """
        path = path / JSON if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UnreadableFile(
                f"{path} cannot be read: {error.strerror}.", hint="`gptflow eval` writes reports."
            ) from None
        except ValidationError as error:
            field = ".".join(str(step) for step in error.errors()[0]["loc"])
            raise UnreadableFile(
                f"{path} is no report: {field or 'it'} does not fit.",
                hint="Make it again with `gptflow eval`.",
            ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _finite(value: float) -> Number:
    return value if math.isfinite(value) else None
