"""Continuing: what a training that goes on from an adapter does more than one that begins.

It begins with the adapter's weights, mixes old rows into the batches (experience replay), judges by
old development rows as well as new ones, may hold weights in place (`gptflow.training.anchor`), and
measures afterwards what was forgotten (`gptflow.training.stages`). Every training keeps rows for
the one after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptflow.adapter import Data
from gptflow.errors import GPTFlowError, ResumeRefused
from gptflow.models.adapter_store import AdapterStore
from gptflow.models.model import Model
from gptflow.training import anchor, reservoir
from gptflow.training.anchor import Anchor
from gptflow.training.data.duplicates import normalise
from gptflow.training.data.reading import read
from gptflow.training.data.rows import Row
from gptflow.training.data.source import Source
from gptflow.training.example import Example
from gptflow.training.objectives.objective import Objective
from gptflow.training.parent import Fresh, Parent, require_kind, still_known
from gptflow.training.reservoir import Kept
from gptflow.training.runs import Run, RunRecord
from gptflow.training.stages import Stage, Stages
from gptflow.training.trainer import Trainer

REPLAYED = "replayed.jsonl"
"""In a run's folder while it is not done: its parent's reservoir, as it was."""

MEASURED = "measured.jsonl"
"""In a run's folder: the development rows that stand for its task, where it has no test file."""

_MEASURED = 500

Notes = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """What a run goes on from; nothing of the sort for a run that begins.

    Attributes:
        kept: the parent's rows that the task still has labels for.
        train: of them those that are replayed, or that weights are held for.
        dev: of them those that also decide which weights are the best.
    """

    parent: Parent | None = None
    kept: tuple[Kept, ...] = ()
    train: tuple[Any, ...] = ()
    dev: tuple[Any, ...] = ()

    @property
    def data(self) -> tuple[Data, ...]:
        """Data sets that the weights were trained on before."""
        known = self.parent.manifest.data if self.parent is not None else ()
        return tuple(data for data in known if data.split == "train")

    @classmethod
    def find(cls, run: Run, store: AdapterStore, model: Model) -> Past:
        """What a run's record names.

        Raises:
            AdapterNotFound, AdapterCorrupt, AdapterMismatch: see `Parent.find`.
            ResumeRefused: it is not what it was when the run began.
        """
        record = run.record
        if record.parent is None:
            return cls()
        parent = Parent.find(store, record.parent, model)
        if parent.sha256 != record.parent_sha256:
            raise ResumeRefused(
                f"Adapter {parent.reference} is not what it was when the run {record.id} began.",
                hint="Begin the training anew.",
            )
        return cls(parent, tuple(reservoir.load(run.folder, REPLAYED) or ()))

    def of(
        self,
        objective: Objective[Any],
        own: Sequence[Row],
        *,
        wanted: bool,
        note: Notes,
    ) -> Past:
        """With the rows that go with an objective and a run's own rows.

        An old row whose text the run's own rows have, too, is not used: nothing is both trained on
        and judged by, and a label that was corrected is not taught again as it was.

        Args:
            own: the run's rows of all splits.
            wanted: whether old rows are used at all.

        Raises:
            UnreadableFile: they are of another kind.
        """
        if self.parent is None or not self.kept:
            return self
        if not wanted and any(type(kept.row) is not type(own[0]) for kept in self.kept):
            return dataclasses.replace(self, kept=())
        require_kind(self.kept, own[0])
        known = still_known(self.kept, objective)
        if len(known) < len(self.kept):
            note(f"{len(self.kept) - len(known)} old rows have labels that the task has no more")
        said = {normalise(row.content) for row in own}
        used = [k for k in known if normalise(k.row.content) not in said] if wanted else []
        return dataclasses.replace(
            self,
            kept=tuple(known),
            train=tuple(kept.row for kept in used if kept.part == "train"),
            dev=tuple(kept.row for kept in used if kept.part == "dev"),
        )

    def begin_from(self, trainer: Trainer[Any], objective: Objective[Any], note: Notes) -> Fresh:
        """Give a trainer the parent's weights.

        Raises:
            NotTrainable, AdapterMismatch: they do not fit.
        """
        assert self.parent is not None
        fresh = self.parent.take_weights(trainer.backbone, trainer.heads, objective)
        told = f"; new to it: {', '.join(fresh.labels)}" if fresh.labels else ""
        note(f"going on from {self.parent.reference}{told}")
        return fresh


def hold(
    trainer: Trainer[Any],
    examples: Sequence[Example],
    fresh: Fresh,
    folder: Path,
    *,
    strength: float,
    key: str,
) -> Anchor:
    """Springs on a trainer's parameters, of the weights that it has now.

    The Fisher information is kept in the run's folder, so that a run that goes on has the same.

    Args:
        examples: of old rows.
        fresh: rows of heads that no spring holds.
        key: what identifies the weights.

    Raises:
        ResumeRefused, TrainingError: see `gptflow.training.anchor`.
    """
    texts = [text.ids for example in examples for text in example.texts]
    key = hashlib.sha256(repr((key, texts)).encode()).hexdigest()
    found = anchor.load(folder, trainer.parameters, key=key)
    if found is None:
        made = anchor.measure(trainer.parameters, examples, trainer.add_gradients)
        for name, known in fresh.known.items():
            made[name] *= known
        anchor.save(folder, made, key=key)
        found = made
    return Anchor(trainer.parameters, found, strength=strength)


def keep_rows(
    run: Run,
    past: Past,
    train: Sequence[Row],
    dev: Sequence[Row],
    *,
    size: int | None,
    tested: bool,
) -> None:
    """Keep rows of a run and of those before it, for the run that goes on from it.

    Args:
        size: most training rows; 0 keeps none, None as many as `reservoir.sample` finds enough.
        tested: whether a test file stands for the run's task.

    Raises:
        TrainingError: the disk is full.
    """
    if size == 0:
        return
    stage = run.folder.name
    own = [Kept(row, "train", stage) for row in train]
    own_dev = [Kept(row, "dev", stage) for row in dev]
    said = {normalise(row.content) for row in (*train, *dev)}
    old = [kept for kept in past.kept if normalise(kept.row.content) not in said]
    reservoir.save(run.folder, reservoir.sample((*old, *own, *own_dev), size))
    if not tested:
        reservoir.save(run.folder, reservoir.sample(own_dev, 4 * _MEASURED), MEASURED)


def measure_stages(
    run: Run,
    past: Past,
    trainer: Trainer[Any],
    objective: Objective[Any],
    *,
    tested: Mapping[str, float],
    note: Notes,
) -> Stages:
    """The matrix of a run and those before it, measured with the weights that a trainer has now.

    Args:
        tested: the figures of the run's test rows, where it has any.
    """
    before = _before(run, past)
    record = run.record
    stage, rows = _own_stage(run, record)
    figures = tested or _figures(trainer, objective, rows)
    figure = before.figure if before is not None else _figure(figures, objective)
    if before is None:
        before = Stages(figure=figure, stages=(), matrix=())
    found: list[float | None] = []
    for number, each in enumerate(before.stages, 1):
        old = _stage_rows(run.folder.parent / each.run, objective)
        if len(old) < each.rows:
            note(f"stage {number}, {each.run}, cannot be measured: its rows are not what they were")
            found.append(None)
        else:
            found.append(_figures(trainer, objective, old).get(figure))
    made = before.extended(stage, (*found, figures.get(figure)))
    made.write(run.folder)
    return made


def _before(run: Run, past: Past) -> Stages | None:
    if past.parent is None or not past.parent.run:
        return None
    return Stages.load(run.folder.parent / past.parent.run)


def _own_stage(run: Run, record: RunRecord) -> tuple[Stage, list[Any]]:
    tested = any(file.split == "test" for file in record.data)
    rows = _rows(run.folder, record)
    on: Any = ("test" if tested else "dev") if rows else "nothing"
    return Stage(run=record.id, rows=len(rows), on=on), rows


def _stage_rows(folder: Path, objective: Objective[Any]) -> list[Any]:
    """The rows of an earlier run's task; none where they are gone, or not what they were."""
    try:
        rows = _rows(folder, Run(folder).record)
    except GPTFlowError:
        return []
    kept = [Kept(row, "dev", "") for row in rows]
    return [each.row for each in still_known(kept, objective)]


def _rows(folder: Path, record: RunRecord) -> list[Any]:
    files = [file for file in record.data if file.split == "test"]
    if not files:
        return [kept.row for kept in reservoir.load(folder, MEASURED) or ()]
    rows: list[Any] = []
    for file in files:
        path, kind = Path(file.path), file.kind
        try:
            with path.open("rb") as opened:
                same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
        except OSError:
            same = False
        if not same:
            return []
        rows += read(path, kind, Source(**file.source)).require()  # type: ignore[arg-type]
    return rows


def _figures(
    trainer: Trainer[Any], objective: Objective[Any], rows: Sequence[Any]
) -> Mapping[str, float]:
    if not rows:
        return {}
    examples = objective.examples(rows)
    return objective.figures(rows, examples, trainer.predict(examples))


def _figure(figures: Mapping[str, float], objective: Objective[Any]) -> str:
    return "accuracy" if "accuracy" in figures else objective.primary
