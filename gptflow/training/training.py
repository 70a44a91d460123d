"""Training: from a run's record to an adapter in the store."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptflow import __version__
from gptflow.adapter import BaseModelRef, HeadSpec, Metric
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import (
    NotTrainable,
    ResumeRefused,
    SplitImpossible,
    TrainingError,
)
from gptflow.models.adapter_store import AdapterStore
from gptflow.models.model import Model
from gptflow.plugins import AnyTask
from gptflow.training import activations, anchor, artefact, checkpoint, curves, reservoir
from gptflow.training.activations import Activations
from gptflow.training.backbone import Backbone, round_to
from gptflow.training.batches import replayed_of
from gptflow.training.blending import Blending
from gptflow.training.continuing import REPLAYED, Past, hold, keep_rows, measure_stages
from gptflow.training.data.requirements import require_seen
from gptflow.training.data.rows import LabelledText, Row
from gptflow.training.evaluation.summary import Report
from gptflow.training.example import Example
from gptflow.training.figures import shipped_metrics, without_rows
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.choice import choose_objective
from gptflow.training.objectives.objective import Objective, Start
from gptflow.training.objectives.preferences import REFERENCE
from gptflow.training.objectives.texts import BEFORE, TextObjective
from gptflow.training.parent import Parent
from gptflow.training.parts import read_parts
from gptflow.training.processes import Processes
from gptflow.training.rebalancing import rebalance
from gptflow.training.recording import TaskRecorder, choose_adapter
from gptflow.training.reservoir import Kept
from gptflow.training.runs import DataFile, Run, RunRecord, RunTable
from gptflow.training.scratch import START
from gptflow.training.served_floors import ServedFloor, floors_to_serve
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch, sitting
from gptflow.training.tracking import tracking
from gptflow.training.trainer import Trainer

Notes = Callable[[str], None]

FEW = 20
"""Fewer new rows than this are all trained on where old ones are there to choose by."""


def begin(
    table: RunTable,
    task: AnyTask,
    model: Model,
    data: Sequence[DataFile],
    settings: TrainingSettings,
    *,
    adapter: str | None = None,
    gates: Mapping[str, float] | None = None,
    track: Sequence[str] = (),
    parent: Parent | None = None,
    job: str | None = None,
) -> Run:
    """Put a new run into the table; `train` then trains it.

    Args:
        track: trackers beside TensorBoard's event files, such as `mlflow`.
        parent: the adapter to go on from; settings that are not given are its own.
        job: of the queue, that it is trained for.

    Raises:
        NotTrainable: the task's head names no adapter, or several; or the settings are not the
            parent's, or no old rows are kept where some are wanted.
        ConfigError, MissingDependency: a tracker is unknown, or not installed.
    """
    tracking.require(track)
    old: list[Kept] = []
    if parent is not None:
        given = settings.model_dump(exclude_unset=True)
        settings = TrainingSettings.of(**parent.inherit(given))
        wanted = settings.replay or settings.ewc
        old = parent.require_rows(table) if wanted else parent.rows(table) or []
    run = table.create(
        task=task.name,
        adapter=choose_adapter(task, adapter),
        model=model.name,
        model_folder=str(model.path),
        model_sha256=model.sha256,
        settings=settings,
        gates=gates or {},
        data=tuple(data),
        track=tuple(dict.fromkeys(track)),
        code=f"gptflow {__version__}",
        job=job,
        parent=None if parent is None else parent.reference,
        parent_sha256=None if parent is None else parent.sha256,
    )
    if old:
        reservoir.save(run.folder, old, REPLAYED)
    return run


def train(
    run: Run,
    task: AnyTask | None,
    model: Model,
    store: AdapterStore,
    *,
    context: int,
    watch: Watch | None = None,
) -> RunRecord:
    """Train a run, from its checkpoint where it has one, and save what comes of it.

    The same data, settings and seed give the same weights on the same machine, however often the
    run was killed in between; on a GPU, nearly the same.

    Returns:
        The run's record, which names the adapter, or the model where all weights were trained.

    Args:
        task: set up, where it needs to be; None where the run has none.
        context: tokens that workers have for one sequence.

    Raises:
        DataError: the rows will not do.
        NotTrainable: the task's head will not.
        ResumeRefused: data or model are not those that the run began with, or it is done.
        LossNotFinite: the loss is not a number any more.
        ReloadDiffers, AdapterNotSaved: see `artefact.save`.
    """
    processes = Processes.launched(run.record.settings.device)
    with run.locked() if processes.first else contextlib.nullcontext():
        record = run.record
        processes.wait()  # all have seen what it was
        if record.state == "done":
            raise ResumeRefused(
                f"The run {record.id} is done.", hint=f"`gptflow adapters show {record.version}`."
            )
        if model.sha256 != record.model_sha256:
            raise ResumeRefused(
                f"The run {record.id} began with other weights of {record.model}.",
                hint="Begin the training anew.",
            )
        try:
            with sitting(run, watch or Watch(), processes) as told:
                made = _Training(run, task, model, store, context, told, processes).run()
                processes.wait()
                return made
        finally:
            processes.part()


def try_settings(
    run: Run,
    task: AnyTask,
    model: Model,
    *,
    context: int,
    watch: Watch | None = None,
    shared: Path | None = None,
) -> RunRecord:
    """Train a run, from its checkpoint where it has one, to learn how good its settings are.

    Only its log is kept, and the best figure of the development split, as the record's only metric.

    Args:
        shared: folder for what the frozen layers give, the same for all settings; it stays there.

    Raises:
        NotTrainable: the run has test rows, which nothing may be chosen by; or see `train`.
        DataError, ResumeRefused, LossNotFinite: see `train`.
    """
    with run.locked():
        if any(file.split == "test" for file in run.record.data):
            raise NotTrainable(
                f"The run {run.record.id} has test rows, and settings are never chosen by them.",
                hint="Search without them, then test what was found with `gptflow train --test`.",
            )
        alone = Processes()
        with sitting(run, watch or Watch(), alone) as told:
            return _Training(run, task, model, None, context, told, alone).attempt(shared)


@dataclasses.dataclass(frozen=True, slots=True)
class _Trained:
    """A model whose parameters are the best ones that were found, and what it was trained on."""

    backbone: Backbone
    heads: TrainedHeads
    objective: Objective[Any]
    trainer: Trainer[Any]
    past: Past
    train: Sequence[Any]
    own_dev: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any]
    test_examples: Sequence[Example]


class _Training:
    """One sitting of a run."""

    def __init__(
        self,
        run: Run,
        task: AnyTask | None,
        model: Model,
        store: AdapterStore | None,
        context: int,
        watch: Watch,
        processes: Processes,
    ) -> None:
        self._run = run
        self._processes = processes
        self._store = store
        self._record = run.record
        self._settings = self._record.settings
        self._model = model
        self._watch = watch
        self._vocabulary = Vocabulary.from_folder(model.path)
        self._context = min(context, model.context) if model.context else context
        self._task = task

    def _fit(self, shared: Path | None = None) -> _Trained:
        settings, watch = self._settings, self._watch
        past = Past() if self._store is None else Past.find(self._run, self._store, self._model)
        few = FEW if any(kept.part == "dev" for kept in past.kept) else 0
        parts = read_parts(self._record, note=watch.note, few=few)
        train, own_dev, test = parts.train, parts.dev, parts.test
        objective = self._objective(train[0])
        wanted = bool(settings.replay or settings.ewc)
        past = past.of(objective, [*train, *own_dev, *test], wanted=wanted, note=watch.note)
        dev = [*own_dev, *past.dev]
        if not dev:
            raise SplitImpossible(
                f"{len(train)} rows are too few to put some aside to choose by.",
                hint="Add rows, or give `--dev FILE`.",
            )
        objective.prepare([*train, *past.train])
        for head in {h for row in test if isinstance(row, LabelledText) for h in row.labels}:
            require_seen([*train, *past.train], test, head)
        if past.train and settings.replay:
            old_share = replayed_of(settings.batch, settings.replay) / settings.batch
            objective.mix(train, past.train, old_share)
        watch.note(
            f"{len(train)} rows to train on, {len(dev)} to choose by, {len(test)} to test"
            + (f", {len(past.train)} old ones" if past.train else "")
        )
        examples, dev_examples = objective.examples(train), objective.examples(dev)
        old_examples = objective.examples(past.train) if past.train else []
        test_examples = objective.examples(test) if test else []
        backbone = Backbone.load(self._model.path, settings, model_id=self._record.model)
        heads = TrainedHeads(objective.heads, backbone.width)
        lower = None
        if backbone.first:
            watch.note(f"computing the lower {backbone.first} layers once")
            sha256 = self._record.model_sha256
            with self._first_does():
                lower = Activations(
                    backbone,
                    [
                        text
                        for each in (examples, old_examples, dev_examples, test_examples)
                        for example in each
                        for text in example.texts
                    ],
                    shared or self._run.folder,
                    key=f"{sha256} {settings.precision}" if shared else sha256,
                    progress=watch.lower,
                )
        trainer = Trainer(
            backbone,
            heads,
            objective,
            settings,
            self._run.folder,
            train=examples,
            dev=dev,
            dev_examples=dev_examples,
            lower=lower,
            replayed=old_examples,
            report=watch.update,
            processes=self._processes,
        )
        if past.parent is not None:
            fresh = past.begin_from(trainer, objective, watch.note)
            if settings.ewc:
                watch.note("measuring what the old rows rely on")
                with self._first_does():
                    trainer.anchor = hold(
                        trainer,
                        old_examples,
                        fresh,
                        self._run.folder,
                        strength=settings.ewc,
                        key=past.parent.sha256,
                    )
        rows, made = (test, test_examples) if test else (dev, dev_examples)
        with self._first_does():
            objective.begin(
                Start(
                    folder=self._run.folder,
                    backbone=backbone,
                    predict=trainer.predict,
                    train=examples,
                    dev=dev_examples,
                    rows=rows,
                    measured=made,
                    note=watch.note,
                    progress=watch.stage,
                )
            )
        trainer.run()
        return _Trained(
            backbone, heads, objective, trainer, past, train, own_dev, dev, test, test_examples
        )

    @contextlib.contextmanager
    def _first_does(self) -> Iterator[None]:
        """Of several processes the first one does it and keeps it; the others read what it kept."""
        if not self._processes.first:
            self._processes.wait()
        yield
        if self._processes.first:
            self._processes.wait()

    def run(self) -> RunRecord:
        """Train, measure, and save an adapter."""
        settings, watch, fit = self._settings, self._watch, self._fit()
        if not self._processes.first:
            return self._record  # the first one measures and saves
        backbone, heads, objective, past = fit.backbone, fit.heads, fit.objective, fit.past
        train, dev, test, trainer = fit.train, fit.dev, fit.test, fit.trainer
        dev_examples, test_examples = trainer.dev_examples, fit.test_examples
        if past.train and settings.replay and settings.rebalance:
            with backbone.in_float32():
                rebalance(trainer, objective, watch.note)
        storage = getattr(torch, settings.storage)
        round_to(heads.trained, storage)
        if settings.method == "lora":
            round_to(backbone.parameters, storage)
        watch.note("measuring")
        with backbone.in_float32():
            outputs = trainer.predict(dev_examples)
            test_outputs = trainer.predict(test_examples) if test else outputs
        rows, made = (test, test_examples) if test else (dev, dev_examples)
        learnt = [*train, *past.train]
        task = self._task if settings.serve_floor and settings.method != "full" else None
        blending, floors = Blending(objective), dict[str, ServedFloor]()
        if task is not None and settings.in_scope is None:
            blending = Blending.find(objective, learnt, dev, dev_examples, outputs)
        specs = objective.specs(dev, dev_examples, blending(dev, outputs))
        measured = blending(rows, test_outputs)
        reports = objective.reports(learnt, rows, made, measured, specs)
        figures = objective.figures(rows, made, measured)
        figures = {**figures, **objective.finish(backbone, figures)}
        if task is not None:
            better = floors_to_serve(task, reports, specs, learnt, dev, rows)
            floors = {**blending.floors(task), **better}
        for name, floor in floors.items():
            watch.note(f"{name}: {floor}")
        metrics = shipped_metrics(objective, reports, figures, floors)
        counts = {"train": len(train), "dev": len(dev)} | ({"test": len(test)} if test else {})
        counts |= {"old": len(past.train)} if past.train else {}
        self._record = self._run.update(
            metrics=metrics,
            primary=objective.primary,
            rows=counts,
            steps=trainer.progress.step,
            tokens=trainer.progress.tokens,
            seconds=trainer.progress.seconds,
            warnings=objective.warnings,
        )
        try:
            for name, report in reports.items():
                report.write(self._run.folder / f"report-{name}")
        except OSError as error:
            raise TrainingError(
                f"The reports in {self._run.folder} cannot be written: {error.strerror}.",
                hint=f"Make room, then `gptflow train --resume {self._run.folder.name}`.",
            ) from None
        curves.write(self._run)
        if objective.staged:
            keep_rows(self._run, past, train, fit.own_dev, size=settings.keep, tested=bool(test))
            with backbone.in_float32():
                tested = figures if test else {}
                measure_stages(self._run, past, trainer, objective, tested=tested, note=watch.note)
        watch.note("saving, and asking the engine the same")
        self._save(
            backbone, heads, objective, specs, metrics, reports, trainer, outputs, past, floors
        )
        self._clean(checkpoint.FILE, activations.STATES, activations.NOTE)
        self._clean(REPLAYED, anchor.FILE, BEFORE, REFERENCE)
        shutil.rmtree(self._run.folder / START, ignore_errors=True)
        self._record = self._run.update(state="done")
        return self._record

    def _objective(self, row: Row) -> Objective[Any]:
        """What is learnt from rows such as this one."""
        record = self._record
        if self._task is None:
            return TextObjective(
                self._vocabulary, self._settings, adapter=record.adapter, context=self._context
            )
        recorder = TaskRecorder(
            self._task, self._vocabulary, context=self._context, adapter=record.adapter
        )
        return choose_objective(recorder, self._vocabulary, row, self._settings)

    def attempt(self, shared: Path | None) -> RunRecord:
        """Train, and keep the best figure only."""
        fit = self._fit(shared)
        progress, primary = fit.trainer.progress, fit.objective.primary
        best = math.nan if progress.best is None else progress.best
        self._record = self._run.update(
            state="done",
            metrics={primary: Metric(value=best)} if math.isfinite(best) else {},
            primary=primary,
            rows={"train": len(fit.train), "dev": len(fit.dev)},
            steps=progress.step,
            tokens=progress.tokens,
            seconds=progress.seconds,
        )
        self._clean(checkpoint.FILE)
        return self._record

    def _clean(self, *names: str) -> None:
        for name in names:
            (self._run.folder / name).unlink(missing_ok=True)

    def _save(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        objective: Objective[Any],
        specs: Mapping[str, HeadSpec],
        metrics: Mapping[str, Metric],
        reports: Mapping[str, Report],
        trainer: Trainer[Any],
        outputs: Sequence[Any],
        past: Past,
        floors: Mapping[str, ServedFloor],
    ) -> None:
        base = None
        if self._settings.method == "full":
            folder = self._run.folder / self._record.id
            made = artefact.save_model(folder, backbone, self._model.path)
            base = BaseModelRef(id=made.name, sha256=(made.sha256,))
            self._record = self._run.update(trained_model=str(folder))
            if not specs:
                return  # there is nothing beside the model
        details = {
            "settings": self._settings.model_dump(mode="json"),
            "rows": dict(self._record.rows),
            "history": trainer.progress.history,
            "best_step": trainer.progress.best_step,
            "continued_from": None if past.parent is None else past.parent.sha256,
            "reports": {name: without_rows(report).as_dict() for name, report in reports.items()},
        }
        assert self._store is not None
        version = artefact.save(
            self._store,
            self._record,
            backbone,
            heads,
            self._vocabulary,
            objective,
            specs=specs,
            metrics=metrics,
            details=details,
            examples=trainer.dev_examples,
            outputs=outputs,
            base=base,
            inherited=past.data,
            floors=floors,
        )
        self._run.update(version=version.reference)
