"""Tuner: tries settings one after the other, by what came of those before.

Tree-structured Parzen estimators draw the settings (Bergstra et al. 2011, "Algorithms for
Hyper-Parameter Optimization"), and a trial that is worse than the median of the others after as
many evaluations is given up (Golovin et al. 2017, "Google Vizier"); both as Optuna has them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from gptflow import __version__
from gptflow.errors import (
    DataError,
    GPTFlowError,
    MissingDependency,
    NotTrainable,
    ResumeRefused,
    TrainingError,
)
from gptflow.models.model import Model
from gptflow.plugins import AnyTask
from gptflow.training import activations, checkpoint, curves
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.recording import choose_adapter
from gptflow.training.runs import DataFile, Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.tracking import tracking
from gptflow.training.trainer import Update
from gptflow.training.training import try_settings
from gptflow.training.tuning import space as spaces
from gptflow.training.tuning.study import (
    ERROR,
    KILLED,
    PICTURE,
    RUN,
    SETTINGS,
    STOPPED,
    Study,
    StudyTable,
    Trial,
    require_optuna,
)

logger = logging.getLogger(__name__)

RANDOM = 8
"""Trials that are drawn at random before the estimator draws by what came of them."""

_BEFORE_PRUNING = 4
"""Trials that are done before one is given up."""

_FIRST_PRUNING = 2
"""The evaluation, from 1, before which none is given up: all begin alike."""

_KILLS = 2
"""Times that the process may die in a trial before that trial is given up: it may be the cause."""

_FAILURES = 5
"""Trials in a row that fail before the search does."""

_OF_ALL_TRIALS = (DataError, NotTrainable, MissingDependency, ResumeRefused)
"""Errors that no other settings would mend."""

_WORSE = "worse than the median of the trials before"

Watching = Callable[[int, Mapping[str, Any]], AbstractContextManager[Watch]]
"""Whom to tell how a trial goes, by its number and the settings that are searched."""


def begin(
    table: StudyTable,
    task: AnyTask,
    model: Model,
    data: Sequence[DataFile],
    settings: TrainingSettings,
    *,
    space: Mapping[str, str],
    trials: int,
    name: str | None = None,
    adapter: str | None = None,
    prune: bool = True,
    track: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Study:
    """Put a new study into the table, or find the one of that name to go on with.

    Args:
        settings: what trials have in common; the first trial has them as they are, where the space
            has room for it.
        space: see `gptflow.training.tuning.space`.
        words: see `StudyRecord`.

    Raises:
        ConfigError: the space or the name will not do.
        NotTrainable: a file of test rows, which nothing may be chosen by; or the task's head names
            no adapter.
        ResumeRefused: the study of that name searched something else.
        MissingDependency: Optuna or a tracker is not installed.
    """
    require_optuna()
    tracking.require(track)
    if any(file.split == "test" for file in data):
        raise NotTrainable(
            "A search is given test rows, and settings are never chosen by them.",
            hint="Leave --test out, and give it to the `gptflow train` of what was found.",
        )
    spaces.parse(space, settings)
    fields: dict[str, Any] = {
        "task": task.name,
        "adapter": choose_adapter(task, adapter),
        "model": model.name,
        "model_folder": str(model.path),
        "model_sha256": model.sha256,
        "settings": settings,
        "space": dict(space),
        "data": tuple(data),
    }
    if name is not None:
        table.check(name)
        if table.has(name):
            study = table.find(name)
            record = study.record
            if other := [key for key, value in fields.items() if getattr(record, key) != value]:
                raise ResumeRefused(
                    f"The study {name} began with other {', '.join(other).replace('_', ' ')}.",
                    hint="Give this one another name with `--study`.",
                )
            study.write(record.model_copy(update={"trials": trials}))
            return study
    study = table.create(
        name,
        **fields,
        trials=trials,
        prune=prune,
        track=tuple(dict.fromkeys(track)),
        words=tuple(words),
        code=f"gptflow {__version__}",
    )
    common = settings.model_dump()
    first = {n: common[n] for n, d in spaces.parse(space, settings).items() if d.holds(common[n])}
    study.open().enqueue_trial(first)
    return study


def tune(
    study: Study,
    task: AnyTask,
    model: Model,
    *,
    context: int,
    watching: Watching | None = None,
    timeout_s: float | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> list[Trial]:
    """Make a study's trials, from where it was left.

    A trial that was stopped or killed goes on from its checkpoint; one that fails is noted, and the
    next begins. Each draws its settings by the seed and its number alone, so that a study which was
    stopped finds what it would have found.

    Args:
        context: tokens that workers have for one sequence.
        watching: an exception that its `Watch` raises stops the study between two steps.
        timeout_s: after which it stops between two steps.

    Raises:
        DataError, NotTrainable: the rows or the head will not do, with any settings.
        ResumeRefused: data or model have changed, or another process makes the trials.
        TrainingError: trials fail one after the other.
    """
    with study.locked():
        if model.sha256 != study.record.model_sha256:
            raise ResumeRefused(
                f"The study {study.folder.name} began with other weights of {model.name}.",
                hint="Begin another.",
            )
        tuner = _Tuner(study, task, model, context, watching or _nobody, timeout_s, note)
        with contextlib.suppress(_TimeIsUp):
            tuner.run()
        tuner.draw()
        return study.trials()


class _TimeIsUp(Exception):
    """The timeout has come."""


class _GivenUp(Exception):
    """A trial is worse than the median."""


class _Tuner:
    """One sitting of a study."""

    def __init__(
        self,
        study: Study,
        task: AnyTask,
        model: Model,
        context: int,
        watching: Watching,
        timeout_s: float | None,
        note: Callable[[str], None],
    ) -> None:
        self._optuna = optuna = require_optuna()
        self._folder = study
        self._record = study.record
        self._space = spaces.parse(self._record.space, self._record.settings)
        self._task = task
        self._model = model
        self._context = context
        self._watching = watching
        self._ends = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._note = note
        self._failures = 0
        self._study = study.open()
        self._study.pruner = (
            optuna.pruners.MedianPruner(
                n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=_FIRST_PRUNING
            )
            if self._record.prune
            else optuna.pruners.NopPruner()
        )

    def run(self) -> None:
        running = self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,))
        for left in running:
            self._go_on(left)
        while len(self._folder.trials()) < self._record.trials:
            self._check_time()
            self._try(self._study.ask())
        for name in (activations.STATES, activations.NOTE):
            (self._folder.folder / name).unlink(missing_ok=True)

    def draw(self) -> None:
        """A picture of all trials' curves."""
        found = {
            f"trial {trial.number}": self._folder.runs.find(trial.run)
            for trial in self._folder.trials()
            if trial.run is not None
        }
        runs = {name: run for name, run in found.items() if run.log()}
        if runs:
            content = curves.draw(list(runs.values()), list(runs))
            with contextlib.suppress(OSError):
                write_whole(self._folder.folder / PICTURE, content)

    def _go_on(self, left: Any) -> None:
        trial = self._optuna.trial.Trial(self._study, left._trial_id)
        kills = left.user_attrs.get(KILLED, 0) + (not left.user_attrs.get(STOPPED, False))
        if kills >= _KILLS:
            self._fail(trial, f"the process was killed {kills} times in this trial")
            return
        trial.set_user_attr(KILLED, kills)
        trial.set_user_attr(STOPPED, False)
        self._note(f"trial {trial.number} goes on")
        self._try(trial)

    def _try(self, trial: Any) -> None:
        """Make one trial, or go on with it."""
        error: str | None = None
        try:
            value = self._train(trial)
            if value is None:
                error = "there is no figure of the development split"
            else:
                self._study.tell(trial, value)
                self._failures = 0
                self._note(f"trial {trial.number}: {value:.4f}")
        except _GivenUp:
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
            self._failures = 0
            self._note(f"trial {trial.number} is given up: {_WORSE}")
        except (KeyboardInterrupt, _TimeIsUp, *_OF_ALL_TRIALS):
            trial.set_user_attr(STOPPED, True)
            raise
        except Exception as failure:
            logger.debug("trial %s failed", trial.number, exc_info=True)
            error = _told(failure)
        if error is not None:
            self._fail(trial, error)
        # The model and what it gave hold on to each other, and a failed trial's frames to both.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _train(self, trial: Any) -> float | None:
        """The best figure of a trial's run; its checkpoint goes once the trial is over."""
        run = self._run(trial)
        reported = self._study.trials[trial.number].intermediate_values

        def update(made: Update) -> None:
            watch.update(made)
            if made.figure is not None:
                # Steps are of another size where batches are, evaluations are not.
                number = sum(r["step"] <= made.step for r in run.log() if r["figures"])
                if number not in reported:
                    trial.report(made.figure, number)
                if trial.should_prune():
                    raise _GivenUp
            self._check_time()

        try:
            with self._watching(trial.number, trial.user_attrs[SETTINGS]) as watch:
                record = try_settings(
                    run,
                    self._task,
                    self._model,
                    context=self._context,
                    watch=Watch(update=update, note=watch.note, lower=watch.lower),
                    shared=self._folder.folder,
                )
        except (KeyboardInterrupt, _TimeIsUp):
            raise
        except BaseException as error:
            (run.folder / checkpoint.FILE).unlink(missing_ok=True)
            told = _WORSE if isinstance(error, _GivenUp) else _told(error)
            run.update(state="failed", error=told)
            raise
        metric = record.metrics.get(record.primary)
        return None if metric is None else metric.value

    def _run(self, trial: Any) -> Run:
        """The run of a trial, made anew where there is none yet."""
        runs, record = self._folder.runs, self._record
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(record.settings.seed + 1_000_003 * trial.number) % 2**32,
            n_startup_trials=RANDOM,
        )
        if (name := trial.user_attrs.get(RUN)) is not None:
            return runs.find(name)
        settings = spaces.draw(trial, self._space, record.settings)
        searched = {name: getattr(settings, name) for name in self._space}
        trial.set_user_attr(SETTINGS, searched)
        run = runs.create(
            task=record.task,
            adapter=record.adapter,
            model=record.model,
            model_folder=record.model_folder,
            model_sha256=record.model_sha256,
            settings=settings,
            data=record.data,
            track=record.track,
            code=record.code,
        )
        trial.set_user_attr(RUN, run.folder.name)
        return run

    def _fail(self, trial: Any, error: str) -> None:
        trial.set_user_attr(ERROR, error)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        self._note(f"trial {trial.number} failed: {error}")
        self._failures += 1
        if self._failures >= _FAILURES:
            raise TrainingError(
                f"{self._failures} trials in a row failed, the last one so: {error}",
                hint=f"Mend that, then `gptflow tune --resume {self._folder.folder.name}`.",
            )

    def _check_time(self) -> None:
        if time.monotonic() >= self._ends:
            raise _TimeIsUp


def _told(error: BaseException) -> str:
    code = f"[{error.code}] " if isinstance(error, GPTFlowError) else f"{type(error).__name__}: "
    return f"{code}{error}".splitlines()[0][:500]


@contextlib.contextmanager
def _nobody(number: int, settings: Mapping[str, Any]) -> Iterator[Watch]:
    yield Watch()
