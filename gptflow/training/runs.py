"""Runs: a local table of trainings, each a folder with its settings, its log and its checkpoint.

<data_dir>/runs/
    mood-20261126-101500/
        run.json                  this module's `RunRecord`
        log.jsonl                 one record per step
        events.out.tfevents...    the same for TensorBoard
        checkpoint.safetensors    while it is not done
        lower.f32                 activations of frozen layers, while it is not done
        report-label/ ...         figures beside their floors, once it is
        loss.png                  losses and figures of the development split, once it is
        reservoir.jsonl           rows for a run that goes on from its adapter
        stages.json               the figures of it and of those that it went on from
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptflow.adapter import Metric
from gptflow.errors import ResumeRefused, RunNotFound, TrainingError
from gptflow.suggestion import did_you_mean
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.settings import TrainingSettings

FILE = "run.json"
LOG = "log.jsonl"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

State = Literal["new", "running", "done", "failed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Strict):
    """A file that is trained on or measured with.

    Attributes:
        sha256: as it was when the run began.
        source: `gptflow.training.data.source.Source` as a mapping.
    """

    path: str
    split: Literal["train", "dev", "test"]
    kind: str
    sha256: str
    source: Mapping[str, Any] = {}
    name: str = ""
    licence: str = "unknown"


class RunRecord(_Strict):
    """What `run.json` holds.

    Attributes:
        task: empty where there is none, as in pre-training.
        adapter: the alias that is trained.
        version: the adapter that came of it, `alias@version`.
        trained_model: the folder of the model that came of it, where all weights were trained.
        metrics: of that adapter.
        track: trackers beside TensorBoard's event files.
        parent: the adapter that it goes on from: `alias@version`, or a folder.
        warnings: what else to know about what was trained.
        error: why the run failed.
        job: the id of the job that it is trained for, where it came from a queue.
    """

    v: Literal[1] = 1
    id: str
    task: str
    adapter: str
    model: str
    model_folder: str
    model_sha256: str
    settings: TrainingSettings
    gates: Mapping[str, float] = {}
    data: tuple[DataFile, ...]
    created: datetime
    code: str = ""
    track: tuple[str, ...] = ()
    state: State = "new"
    version: str | None = None
    trained_model: str | None = None
    metrics: Mapping[str, Metric] = {}
    primary: str = ""
    parent: str | None = None
    parent_sha256: str | None = None
    rows: Mapping[str, int] = {}
    steps: int = 0
    tokens: int = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    job: str | None = None


class Run:
    """One training's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def record(self) -> RunRecord:
        """Read anew each time.

        Raises:
            RunNotFound: `run.json` cannot be read.
        """
        try:
            return RunRecord.model_validate_json((self.folder / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise RunNotFound(
                f"{self.folder / FILE} cannot be read: {type(error).__name__}.",
                hint="`gptflow runs list` shows the runs.",
            ) from None

    def update(self, **fields: Any) -> RunRecord:
        """Change fields of the record."""
        return self._write(self.record.model_copy(update=fields))

    def delete(self) -> None:
        """Take a run that never began out of the table."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> list[dict[str, Any]]:
        """One record per step; of steps that a kill undid and that were made again, the last."""
        steps: dict[int, dict[str, Any]] = {}
        with contextlib.suppress(OSError):
            for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    steps[record["step"]] = record
        return [steps[step] for step in sorted(steps)]

    @property
    def state(self) -> str:
        """That of the record, or `interrupted` where the process that trained is gone."""
        state = self.record.state
        if state != "running":
            return state
        try:
            with self._lock.acquire(0):
                return "interrupted"
        except filelock.Timeout:
            return state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training the same run.

        Raises:
            ResumeRefused: one does.
        """
        try:
            lock = self._lock.acquire(0)
        except filelock.Timeout:
            raise ResumeRefused(
                f"The run {self.folder.name} is being trained by another process.",
                hint=f"`gptflow runs show {self.folder.name}` shows how far it is.",
            ) from None
        with lock:
            yield

    def _write(self, record: RunRecord) -> RunRecord:
        try:
            write_whole(self.folder / FILE, (record.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise TrainingError(
                f"{self.folder / FILE} cannot be written: {error.strerror}.",
                hint="Make room, then go on with the run.",
            ) from None
        return record

    @property
    def _lock(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / ".lock")


class RunTable:
    """All runs on this machine.

    Args:
        folder: `Settings.data_dir / "runs"`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, **fields: Any) -> Run:
        """A new run; `fields` are those of its record.

        Raises:
            TrainingError: its folder cannot be made.
        """
        created = datetime.now(UTC)
        stem = f"{fields['adapter']}-{created:%Y%m%d-%H%M%S}"
        for number in range(1, 1000):
            folder = self.folder / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise TrainingError(f"{folder} cannot be made: {error.strerror}.") from None
            run = Run(folder)
            run._write(RunRecord(id=folder.name, created=created, **fields))
            return run
        raise TrainingError(f"There are too many runs {stem}.")

    def list(self) -> list[Run]:
        """The oldest first; folders that hold no run are left out."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                with contextlib.suppress(RunNotFound):
                    run = Run(folder)
                    found.append((run.record.created, folder.name, run))
        return [run for *_, run in sorted(found, key=lambda each: each[:2])]

    def find(self, name: str) -> Run:
        """A run by its name, or by `last`.

        Raises:
            RunNotFound: there is none.
        """
        runs = self.list()
        if name == "last" and runs:
            return runs[-1]
        if _NAME.fullmatch(name) and (self.folder / name / FILE).is_file():
            return Run(self.folder / name)
        raise RunNotFound(
            f"There is no run {name!r}.",
            hint=did_you_mean(name, [run.folder.name for run in runs])
            or "`gptflow runs list` shows the runs.",
        )
