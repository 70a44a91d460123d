"""Training: from a run's record to an adapter in the store."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gptflow.adapter import BaseModelRef, HeadSpec, Metric
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import GPTFlowError, ResumeRefused, TrainingError, UnreadableFile
from gptflow.models.adapter_store import AdapterStore
from gptflow.models.model import Model
from gptflow.plugins import AnyTask
from gptflow.training import artefact, checkpoint
from gptflow.training.activations import Activations
from gptflow.training.backbone import Backbone, round_to
from gptflow.training.data.duplicates import find_duplicates
from gptflow.training.data.reading import read
from gptflow.training.data.requirements import require_seen
from gptflow.training.data.rows import LabelledText, Row, ScoredPair
from gptflow.training.data.source import Kind, Source
from gptflow.training.data.splits import split
from gptflow.training.evaluation.summary import Report
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.choice import choose_objective
from gptflow.training.objectives.objective import Objective
from gptflow.training.processes import Processes
from gptflow.training.recording import TaskRecorder, choose_adapter
from gptflow.training.runs import DataFile, Run, RunRecord, RunTable
from gptflow.training.served_floors import ServedFloor, floors_to_serve
from gptflow.training.settings import TrainingSettings
from gptflow.training.trainer import Trainer, Update

Notes = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Whom to tell how it goes.

    Attributes:
        update: after each step. An exception that it raises stops the run, which can be resumed.
        note: of each stage, in words.
        lower: of the activations of frozen layers, tokens that are done, and of how many.
    """

    update: Callable[[Update], None] = lambda update: None
    note: Notes = lambda message: None
    lower: Callable[[int, int], None] = lambda done, total: None


def data_file(
    path: Path, split: Any, kind: Kind, source: Source, *, name: str = "", licence: str = "unknown"
) -> DataFile:
    """A file for a run's record, as it is now.

    Raises:
        UnreadableFile: it is not there.
    """
    given = dataclasses.asdict(source)
    default = dataclasses.asdict(Source())
    return DataFile(
        path=str(path.resolve()),
        split=split,
        kind=kind,
        sha256=_sha256(path),
        source={key: value for key, value in given.items() if value != default[key]},
        name=name or path.name,
        licence=licence,
    )


def begin(
    table: RunTable,
    task: AnyTask,
    model: Model,
    data: Sequence[DataFile],
    settings: TrainingSettings,
    *,
    adapter: str | None = None,
    gates: Mapping[str, float] | None = None,
    job: str | None = None,
) -> Run:
    """Put a new run into the table; `train` then trains it.

    Raises:
        NotTrainable: the task's head names no adapter, or several.
    """
    return table.create(
        task=task.name,
        adapter=choose_adapter(task, adapter),
        model=model.name,
        model_folder=str(model.path),
        model_sha256=model.sha256,
        settings=settings,
        gates=gates or {},
        data=tuple(data),
        code=f"gptflow {metadata.version('gptflow')}",
        job=job,
    )


def train(
    run: Run,
    task: AnyTask,
    model: Model,
    store: AdapterStore,
    *,
    context: int,
    watch: Watch | None = None,
) -> RunRecord:
    """Train a run, from its checkpoint where it has one, and save what comes of it.

    The same data, settings and seed give the same weights on the same machine, however often the
    run was killed in between.

    Returns:
        The run's record, which names the adapter, or the model where all weights were trained.

    Args:
        task: set up, where it needs to be.
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
        if processes.first:
            run.update(state="running", error=None)
        try:
            made = _Training(run, task, model, store, context, watch or Watch(), processes).run()
            processes.wait()
            return made
        except GPTFlowError as error:
            if processes.first:
                with contextlib.suppress(GPTFlowError):
                    run.update(state="failed", error=f"[{error.code}] {error}")
            raise
        finally:
            processes.part()


class _Training:
    """One sitting of a run."""

    def __init__(
        self,
        run: Run,
        task: AnyTask,
        model: Model,
        store: AdapterStore,
        context: int,
        watch: Watch,
        processes: Processes,
    ) -> None:
        self._run = run
        self._processes = processes
        self._record = run.record
        self._settings = self._record.settings
        self._model = model
        self._store = store
        self._watch = watch
        self._vocabulary = Vocabulary.from_folder(model.path)
        most = min(context, model.context) if model.context else context
        self._recorder = TaskRecorder(
            task, self._vocabulary, context=most, adapter=self._record.adapter
        )

    def run(self) -> RunRecord:
        settings, watch = self._settings, self._watch
        train, dev, test = self._rows()
        objective = choose_objective(self._recorder, self._vocabulary, train[0], settings)
        objective.prepare(train)
        for head in {h for row in test if isinstance(row, LabelledText) for h in row.labels}:
            require_seen(train, test, head)
        watch.note(f"{len(train)} rows to train on, {len(dev)} to choose by, {len(test)} to test")
        examples, dev_examples = objective.examples(train), objective.examples(dev)
        test_examples = objective.examples(test) if test else []
        backbone = Backbone.load(self._model.path, settings, model_id=self._record.model)
        heads = TrainedHeads(objective.heads, backbone.width)
        lower = None
        if backbone.first:
            watch.note(f"computing the lower {backbone.first} layers once")
            if not self._processes.first:
                self._processes.wait()
            lower = Activations(
                backbone,
                [text for e in (*examples, *dev_examples, *test_examples) for text in e.texts],
                self._run.folder,
                key=self._record.model_sha256,
                progress=watch.lower,
            )
            if self._processes.first:
                self._processes.wait()  # the others read what this one has written
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
            report=watch.update,
            processes=self._processes,
        )
        progress = trainer.run()
        if not self._processes.first:
            return self._record  # the first one measures and saves
        if settings.method == "lora":
            round_to(backbone.parameters, getattr(torch, settings.storage))
        watch.note("measuring")
        with backbone.in_float32():
            outputs = trainer.predict(dev_examples)
            test_outputs = trainer.predict(test_examples) if test else outputs
        specs = objective.specs(dev, dev_examples, outputs)
        rows, made = (test, test_examples) if test else (dev, dev_examples)
        reports = objective.reports(train, rows, made, test_outputs, specs)
        metrics = _metrics(objective, reports, objective.figures(rows, made, test_outputs))
        floors: dict[str, ServedFloor] = {}
        if settings.serve_floor and settings.method != "full":
            floors = floors_to_serve(self._recorder.task, reports, specs, train, dev, rows)
        for name, floor in floors.items():
            watch.note(f"{name}: {floor.spec.kind} is as good, and answers in the adapter's place")
            ece = floor.report.value("ece")
            metrics["ece" if len(reports) == 1 else f"{name}.ece"] = Metric(value=ece, floor=ece)
        counts = {"train": len(train), "dev": len(dev)} | ({"test": len(test)} if test else {})
        self._record = self._run.update(
            metrics=metrics,
            primary=objective.primary,
            rows=counts,
            steps=progress.step,
            tokens=progress.tokens,
            seconds=progress.seconds,
        )
        try:
            for name, report in reports.items():
                report.write(self._run.folder / f"report-{name}")
        except OSError as error:
            raise TrainingError(
                f"The reports in {self._run.folder} cannot be written: {error.strerror}.",
                hint=f"Make room, then `gptflow train --resume {self._run.folder.name}`.",
            ) from None
        watch.note("saving, and asking the engine the same")
        self._save(backbone, heads, objective, specs, metrics, reports, trainer, outputs, floors)
        for left in (checkpoint.FILE, "lower.f32", "lower.json"):
            (self._run.folder / left).unlink(missing_ok=True)
        self._record = self._run.update(state="done")
        return self._record

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
            "reports": {name: _to_ship(report).as_dict() for name, report in reports.items()},
        }
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
            floors=floors,
        )
        self._run.update(version=version.reference)

    def _rows(self) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        return rows_of(self._record)


def rows_of(record: RunRecord) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Train, dev and test of a run. Dev is cut from train where no file is given for it.

    Raises:
        ResumeRefused: a file is not what it was when the run began.
        DataError: it cannot be read any more.
    """
    parts: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for file in record.data:
        path = Path(file.path)
        if _sha256(path) != file.sha256:
            raise ResumeRefused(
                f"{path} is not what it was when the run {record.id} began.",
                hint="Begin the training anew.",
            )
        kind: Any = file.kind
        parts[file.split] += read(path, kind, Source(**file.source)).require()
    train = [_grouped(row) for row in parts["train"]]
    if parts["dev"]:
        return train, parts["dev"], parts["test"]
    method: Any = "grouped" if all(row.group for row in train) else "stratified"
    cut = split(
        train,
        method=method,
        dev=record.settings.dev,
        test=0,
        seed=record.settings.seed,
        duplicates=find_duplicates(train),
    )
    return cut.train, cut.dev, parts["test"]


def _grouped(row: Row) -> Row:
    """The candidates of one query stay together."""
    if isinstance(row, ScoredPair) and row.group is None:
        return dataclasses.replace(row, group=row.query)
    return row


def _to_ship(report: Report) -> Report:
    """A report without the rows' texts, and without this machine's folders."""
    report = report.without_texts()
    worst = (w.model_copy(update={"where": w.where.rpartition("/")[2]}) for w in report.worst)
    return report.model_copy(update={"worst": tuple(worst)})


def _metrics(
    objective: Objective[Any], reports: Mapping[str, Report], figures: Mapping[str, float]
) -> dict[str, Metric]:
    """Figures for the manifest, each with that of the best floor where there is one."""
    primary = objective.primary
    found: dict[str, Metric] = {}
    floors: list[float] = []
    for name, report in reports.items():
        best = report.floors.get(report.best_floor or "", {})
        for figure, measured in report.metrics.items():
            floor = best[figure].value if figure in best else None
            if measured.value is not None:
                found[figure if len(reports) == 1 else f"{name}.{figure}"] = Metric(
                    value=measured.value, floor=floor
                )
            if figure == primary and floor is not None:
                floors.append(floor)
        if report.calibration is not None:
            key = "ece" if len(reports) == 1 else f"{name}.ece"
            found[key] = Metric(value=report.calibration.ece)
    for figure, value in figures.items():
        if figure not in found and value == value:
            mean = sum(floors) / len(floors) if figure == primary and floors else None
            found[figure] = Metric(value=value, floor=mean)
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}.") from None
