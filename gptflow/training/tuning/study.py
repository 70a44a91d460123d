"""Studies: searches on this machine, each a folder with its trials.

<data_dir>/studies/
    mood-20261126-101500/
        study.json       this module's `StudyRecord`
        study.db         Optuna's trials, in SQLite
        runs/            a run for each trial, as `gptflow.training.runs` has them
        trials.png       the curves of all trials
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptflow.errors import (
    ConfigError,
    MissingDependency,
    ResumeRefused,
    StudyNotFound,
    TrainingError,
)
from gptflow.suggestion import did_you_mean
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.runs import DataFile, RunTable
from gptflow.training.settings import TrainingSettings

FILE = "study.json"
DATABASE = "study.db"
PICTURE = "trials.png"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

RUN, SETTINGS, ERROR, KILLED, STOPPED = "run", "settings", "error", "killed", "stopped"
"""Names of what is noted with Optuna's trials."""

State = Literal["done", "pruned", "failed", "running"]


def require_optuna() -> Any:
    """The package.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingDependency(
            "A search needs Optuna.", hint="Type `pip install 'gptflow[train]'`."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class StudyRecord(BaseModel):
    """What `study.json` holds.

    Attributes:
        settings: what trials have in common.
        space: the dimensions as they are written, see `gptflow.training.tuning.space`.
        trials: to make in all.
        prune: trials that are worse than the median are given up.
        words: what of `gptflow train` gives the same data and settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    id: str
    task: str
    adapter: str
    model: str
    model_folder: str
    model_sha256: str
    settings: TrainingSettings
    space: Mapping[str, str]
    data: tuple[DataFile, ...]
    trials: Annotated[int, Field(ge=1)]
    prune: bool = True
    track: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    created: datetime
    code: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial.

    Attributes:
        value: the best figure of the development split; of one that was given up, until then.
        settings: the searched ones.
        run: its run's name.
        seconds: from its beginning to its end, and what it lay still in between.
        error: why it failed.
    """

    number: int
    state: State
    value: float | None
    settings: Mapping[str, Any]
    run: str | None
    seconds: float
    error: str | None


class Study:
    """One search's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def record(self) -> StudyRecord:
        """Read anew each time.

        Raises:
            StudyNotFound: `study.json` cannot be read.
        """
        try:
            return StudyRecord.model_validate_json((self.folder / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise StudyNotFound(
                f"{self.folder / FILE} cannot be read: {type(error).__name__}.",
                hint=f"The studies are in {self.folder.parent}.",
            ) from None

    @property
    def runs(self) -> RunTable:
        """The trials' runs."""
        return RunTable(self.folder / "runs")

    def write(self, record: StudyRecord) -> None:
        """Write `study.json`.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            write_whole(self.folder / FILE, (record.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"{self.folder / FILE} cannot be written: {error}.") from None

    def trials(self) -> list[Trial]:
        """In the order in which they began; those that wait for their turn are left out."""
        found = [each for each in self.open().trials if each.state.name in _STATES]
        return [self._trial(each) for each in found]

    def best(self) -> Trial | None:
        """The trial with the best figure that was not given up."""
        done = [each for each in self.trials() if each.state == "done" and each.value is not None]
        return max(done, key=lambda trial: trial.value or 0.0, default=None)

    def open(self) -> Any:
        """Optuna's study.

        Raises:
            MissingDependency: Optuna is not installed.
            StudyNotFound: the database cannot be read.
        """
        optuna = require_optuna()
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.pool import NullPool

        path = (self.folder / DATABASE).resolve()
        try:
            # No connection stays open: nothing here closes a pool of them.
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool}
            )
            return optuna.create_study(
                storage=storage,
                study_name=self.folder.name,
                direction="maximize",
                load_if_exists=True,
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            raise StudyNotFound(
                f"{path} cannot be read: {str(error).splitlines()[0]}",
                hint="Begin another study.",
            ) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from going on with the same study.

        Raises:
            ResumeRefused: one does.
        """
        try:
            lock = filelock.FileLock(self.folder / ".lock").acquire(0)
        except filelock.Timeout:
            raise ResumeRefused(
                f"The study {self.folder.name} is under way in another process.",
                hint="Wait until it has ended.",
            ) from None
        with lock:
            yield

    def _trial(self, found: Any) -> Trial:
        run = found.user_attrs.get(RUN)
        reported = list(found.intermediate_values.values())
        return Trial(
            number=found.number,
            state=_STATES[found.state.name],
            value=found.value if found.state.name == "COMPLETE" else max(reported, default=None),
            settings=found.user_attrs.get(SETTINGS, found.params),
            run=run,
            seconds=(found.duration or timedelta()).total_seconds(),
            error=found.user_attrs.get(ERROR),
        )


_STATES: Mapping[str, State] = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
}


class StudyTable:
    """All studies on this machine.

    Args:
        folder: `Settings.data_dir / "studies"`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, name: str | None, **fields: Any) -> Study:
        """A new study; `fields` are those of its record.

        Args:
            name: made of the adapter and the time where it is None.

        Raises:
            ConfigError: the name will not do.
            TrainingError: its folder cannot be made.
        """
        created = datetime.now(UTC)
        name = name or f"{fields['adapter']}-{created:%Y%m%d-%H%M%S}"
        self.check(name)
        study = Study(self.folder / name)
        try:
            study.folder.mkdir(parents=True)
        except OSError as error:
            raise TrainingError(f"{study.folder} cannot be made: {error.strerror}.") from None
        study.write(StudyRecord(id=name, created=created, **fields))
        return study

    def check(self, name: str) -> None:
        """Raises ConfigError where a study cannot be called so."""
        if not _NAME.fullmatch(name) or name == "last":
            raise ConfigError(
                f"A study cannot be called {name!r}.",
                hint="Give small letters, digits, dots, hyphens and underscores.",
            )

    def has(self, name: str) -> bool:
        """Whether there is a study of that name."""
        return bool(_NAME.fullmatch(name)) and (self.folder / name / FILE).is_file()

    def find(self, name: str) -> Study:
        """A study by its name, or by `last`.

        Raises:
            StudyNotFound: there is none.
        """
        if self.has(name):
            return Study(self.folder / name)
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                with contextlib.suppress(StudyNotFound):
                    found.append((Study(folder).record.created, folder.name))
        if name == "last" and found:
            return Study(self.folder / max(found)[1])
        names = [each for _, each in sorted(found)]
        raise StudyNotFound(
            f"There is no study {name!r}.",
            hint=did_you_mean(name, names)
            or (f"There are {', '.join(names)}." if names else "`gptflow tune TASK` begins one."),
        )
