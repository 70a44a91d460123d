"""Stages: how good every adapter of a chain of trainings is at every stage's task.

Row j of the matrix is of the adapter after stage j, column i of the rows that stage i is measured
on: its test file, or where it had none, the development rows that its run kept. From the last row
come the mean, the backward transfer (Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for
Continual Learning": the mean over earlier stages of the last figure minus that just after the
stage; below zero is forgetting) and the forgetting (Chaudhry et al. 2018, "Riemannian Walk": the
same from the best figure that any adapter before the last had).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gptflow.errors import UnreadableFile
from gptflow.training.evaluation.summary import write_whole

JSON = "stages.json"
MARKDOWN = "stages.md"


class Stage(BaseModel):
    """One training of the chain.

    Attributes:
        run: its id.
        rows: that it is measured on; 0 where there are none.
        on: whether they are its test rows, or development rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    rows: int
    on: Literal["test", "dev", "nothing"]


class Stages(BaseModel):
    """The matrix. A figure is null where it was not, or cannot be, measured.

    Attributes:
        figure: such as `accuracy`; more is better.
        matrix: `[stages, stages]`: that of the adapter after a stage, at each stage's task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    figure: str
    stages: tuple[Stage, ...]
    matrix: tuple[tuple[float | None, ...], ...]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Of a run's folder; None where there is none.

        Raises:
            UnreadableFile: it is damaged.
        """
        path = folder / JSON
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UnreadableFile(f"{path} cannot be read: {type(error).__name__}.") from None

    def write(self, folder: Path) -> None:
        """As JSON, and as Markdown.

        Raises:
            OSError: they cannot be written.
        """
        write_whole(folder / JSON, (self.model_dump_json(indent=2) + "\n").encode())
        write_whole(folder / MARKDOWN, self.as_markdown().encode())

    def extended(self, stage: Stage, row: tuple[float | None, ...]) -> Self:
        """With one more stage, whose adapter has these figures, its own task's last."""
        before = [(*each, None) for each in self.matrix]
        return self.model_copy(update={"stages": (*self.stages, stage), "matrix": (*before, row)})

    @property
    def mean(self) -> float | None:
        """Of the last adapter over all tasks."""
        return _mean([value for value in self.matrix[-1] if value is not None])

    @property
    def backward_transfer(self) -> float | None:
        """None where there is one stage, or none can be compared."""
        pairs = ((self.matrix[-1][i], self.matrix[i][i]) for i in range(len(self.stages) - 1))
        return _mean([last - own for last, own in pairs if last is not None and own is not None])

    @property
    def forgetting(self) -> float | None:
        """None where there is one stage, or none can be compared."""
        gaps = []
        for i in range(len(self.stages) - 1):
            before = [row[i] for row in self.matrix[i:-1]]
            known, last = [value for value in before if value is not None], self.matrix[-1][i]
            if known and last is not None:
                gaps.append(max(known) - last)
        return _mean(gaps)

    def table(self) -> list[list[str]]:
        """Rows of cells: the stage, what its task is measured on, and the figures."""
        return [
            [f"{number}: {stage.run}", f"{stage.rows} {stage.on}", *map(_cell, row)]
            for number, (stage, row) in enumerate(zip(self.stages, self.matrix, strict=True), 1)
        ]

    def summary(self) -> dict[str, float | None]:
        """The figures that are made of the matrix."""
        return {
            f"mean {self.figure}": self.mean,
            "backward transfer": self.backward_transfer,
            "forgetting": self.forgetting,
        }

    def as_dict(self) -> dict[str, object]:
        """For JSON, with what is made of the matrix."""
        return self.model_dump(mode="json") | {
            "mean": self.mean,
            "backward_transfer": self.backward_transfer,
            "forgetting": self.forgetting,
        }

    def as_markdown(self) -> str:
        """A table of the matrix, and the figures made of it."""
        numbers = [str(number) for number in range(1, len(self.stages) + 1)]
        lines = [
            f"# {self.figure} after each stage, at each stage's task",
            "",
            "| after stage | measured on | " + " | ".join(numbers) + " |",
            "|---|---|" + "---|" * len(numbers),
            *("| " + " | ".join(row) + " |" for row in self.table()),
            "",
            *(f"- {name}: {_cell(value)}" for name, value in self.summary().items()),
        ]
        return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
