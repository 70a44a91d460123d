"""Searches: spaces, pruning, failures, kills, and that test rows are never touched."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow.errors import (
    ConfigError,
    MissingDependency,
    NotTrainable,
    ResumeRefused,
    StudyNotFound,
    TrainingError,
)
from gptflow.training import checkpoint
from gptflow.training.backbone import Backbone
from gptflow.training.data.source import Source
from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.parts import data_file
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.trainer import Trainer
from gptflow.training.training import begin as begin_run
from gptflow.training.training import train as train_run
from gptflow.training.tuning import tuner
from gptflow.training.tuning.study import Study, StudyTable
from gptflow.training.tuning.tuner import begin, tune

SPACE = {"learning_rate": "1e-3:1e-2:log", "rank": "2,4"}


@pytest.fixture
def make(tiny: SimpleNamespace, tmp_path: Path) -> Callable[..., Study]:
    """`make(trials=3)` begins a study of the tiny topic task."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6))

    def make(trials: int = 3, *, split: Any = "train", **fields: Any) -> Study:
        task = tiny.Topic()
        task.check()
        files = [data_file(rows, "train", "labels", Source())]
        if split != "train":
            others = tiny.jsonl(tmp_path / "others.jsonl", tiny.topic_rows(8)[6::8])
            files.append(data_file(others, split, "labels", Source()))
        common = {"batch": 16, "epochs": 1, "head_learning_rate": 1e-2} | fields.pop("common", {})
        return begin(
            StudyTable(tmp_path / "studies"),
            task,
            tiny.model(),
            files,
            TrainingSettings.of(**common),
            **{"space": SPACE, "trials": trials} | fields,
        )

    return make


@pytest.fixture
def go(tiny: SimpleNamespace) -> Callable[..., list[tuner.Trial]]:
    def go(study: Study, **given: Any) -> list[tuner.Trial]:
        task = tiny.Topic()
        task.check()
        return tune(study, task, tiny.model(), context=256, **given)

    return go


def watching(update: Callable[[int, Any], None]) -> Any:
    """A watch of a study: `update(trial, update)` is called after each step."""

    @contextlib.contextmanager
    def watch(number: int, settings: Mapping[str, Any]) -> Iterator[Watch]:
        yield Watch(update=lambda made: update(number, made))

    return watch


def told(trials: list[tuner.Trial]) -> list[tuple[str, float | None, Mapping[str, Any]]]:
    return [(trial.state, trial.value, trial.settings) for trial in trials]


# How trials go


def test_a_study_finds_settings_by_the_development_split_alone(
    make: Callable[..., Study], go: Any, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    study = make(3)
    trials = go(study)
    assert [trial.state for trial in trials] == ["done"] * 3
    best = study.best()
    assert best is not None
    assert best.value == max(trial.value or 0 for trial in trials)
    for trial in trials:
        run = study.runs.find(str(trial.run))
        record = run.record
        figures = [r["figures"]["macro_f1"] for r in run.log() if r["figures"]]
        assert trial.value == max(figures) == record.metrics["macro_f1"].value
        assert {name: getattr(record.settings, name) for name in SPACE} == trial.settings
        assert record.rows.keys() == {"train", "dev"}
        assert record.version is None
        assert list(run.folder.glob("events.out.tfevents.*"))
        assert not (run.folder / checkpoint.FILE).exists()
    assert (study.folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "adapters").exists()
    assert tiny.table.list() == []

    # The command that is printed trains the very same.
    task = tiny.Topic()
    task.check()
    record = study.runs.find(str(best.run)).record
    again = begin_run(tiny.table, task, tiny.model(), record.data, record.settings)
    train_run(again, task, tiny.model(), tiny.store, context=256)
    assert max(r["figures"]["macro_f1"] for r in again.log() if r["figures"]) == best.value


def test_the_first_trial_has_the_settings_as_they_are(make: Callable[..., Study], go: Any) -> None:
    study = make(1, space={"dropout": "0:0.2", "rank": "2,4,16"})
    [trial] = go(study)
    assert trial.settings == {"dropout": 0.05, "rank": 16}


def test_test_rows_are_refused(make: Callable[..., Study], tmp_path: Path) -> None:
    with pytest.raises(NotTrainable, match="test rows") as error:
        make(split="test")
    assert "--test" in str(error.value.hint)
    assert not (tmp_path / "studies").exists()


def test_rows_to_choose_by_may_be_a_file(make: Callable[..., Study], go: Any) -> None:
    [trial] = go(study := make(1, split="dev"))
    assert study.runs.find(str(trial.run)).record.rows == {"train": 90, "dev": 15}


def test_what_is_worse_than_the_median_is_given_up(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four good trials first, then learning rates with which nothing is learnt.
    space = {"learning_rate": "1e-9:1e-2:log"}
    study = make(6, common={"epochs": 3, "rank": 4, "learning_rate": 1e-2}, space=space)
    found = study.open()
    for rate in (8e-3, 7e-3, 6e-3, 1e-9, 2e-9):
        found.enqueue_trial({"learning_rate": rate})
    monkeypatch.setattr(
        LabelObjective,
        "figures",
        lambda self, *of: {"macro_f1": float(self._settings.learning_rate > 1e-3)},
    )
    trials = go(study)
    assert [trial.state for trial in trials] == ["done"] * 4 + ["pruned"] * 2
    for trial in trials[-2:]:
        run = study.runs.find(str(trial.run))
        assert sum(bool(record["figures"]) for record in run.log()) == 2
        assert not (run.folder / checkpoint.FILE).exists()
        assert "median" in str(run.record.error)
    best = study.best()
    assert best is not None
    assert best.state == "done"


def test_nothing_is_given_up_where_that_is_asked_for(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(6, prune=False, common={"epochs": 2}, space={"rank": "1,2,3,4,5,6"})
    values = iter((1.0,) * 16 + (0.0,) * 99)
    monkeypatch.setattr(LabelObjective, "figures", lambda self, *of: {"macro_f1": next(values)})
    assert {trial.state for trial in go(study)} == {"done"}


def test_a_trial_that_fails_is_noted_and_the_study_goes_on(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Trainer._update
    failures = iter((RuntimeError("out of memory\nat 0x7f"), None, None))

    def fail_once(self: Any, step: int, batch: Any) -> float:
        if step == 2 and (error := next(failures)) is not None:
            raise error
        return before(self, step, batch)

    monkeypatch.setattr(Trainer, "_update", fail_once)
    study = make(3)
    trials = go(study)
    assert [trial.state for trial in trials] == ["failed", "done", "done"]
    assert trials[0].error == "RuntimeError: out of memory"
    run = study.runs.find(str(trials[0].run))
    assert (run.state, run.record.error) == ("failed", trials[0].error)
    assert study.best() in trials[1:]


def test_a_study_in_which_every_trial_fails_ends(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, step: int, batch: Any) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(Trainer, "_update", fail)
    study = make(20)
    with pytest.raises(TrainingError, match="5 trials in a row failed"):
        go(study)
    assert len(study.trials()) == 5


def test_a_trial_without_a_figure_fails(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelObjective, "figures", lambda self, *of: {"macro_f1": math.nan})
    [trial] = go(study := make(1))
    assert (trial.state, study.best()) == ("failed", None)
    assert "no figure" in str(trial.error)


def test_a_model_is_freed_before_the_next_is_loaded(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    before = Backbone.load.__func__  # type: ignore[attr-defined]
    left: list[int] = []

    def load(cls: Any, *args: Any, **kwargs: Any) -> Any:
        left.append(sum(each() is not None for each in alive))
        made = before(cls, *args, **kwargs)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Backbone, "load", classmethod(load))
    update = Trainer._update
    monkeypatch.setattr(
        Trainer,
        "_update",
        lambda self, step, batch: 1 / 0 if len(alive) == 2 else update(self, step, batch),
    )
    gc.disable()  # it is not by chance
    try:
        trials = go(make(4))
    finally:
        gc.enable()
    assert [trial.state for trial in trials] == ["done", "failed", "done", "done"]
    assert left == [0, 0, 0, 0]


def test_lower_layers_are_computed_once_for_all_trials(
    make: Callable[..., Study], go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    before = Backbone.lower

    def lower(self: Any, part: Any) -> Any:
        calls.append(len(part))
        return before(self, part)

    monkeypatch.setattr(Backbone, "lower", lower)
    study = make(2, common={"layers": "upper"})
    go(study)
    assert sum(calls) == 90
    assert not (study.folder / "lower.f32").exists()


# Stopped, killed, gone on with


def test_a_study_that_was_stopped_in_a_trial_finds_what_it_would_have_found(
    make: Callable[..., Study], go: Any
) -> None:
    whole = told(go(make(4, name="whole")))

    def stop(number: int, made: Any) -> None:
        if (number, made.step) == (1, 3):
            raise KeyboardInterrupt

    study = make(4, name="parts")
    with pytest.raises(KeyboardInterrupt):
        go(study, watching=watching(stop))
    assert [trial.state for trial in study.trials()] == ["done", "running"]
    steps: list[tuple[int, int]] = []
    trials = go(study, watching=watching(lambda n, made: steps.append((n, made.step))))
    assert steps[0] == (1, 4)  # after the one that it was stopped in
    assert told(trials) == whole


def test_a_study_whose_time_is_up_stops_between_steps_and_goes_on(
    make: Callable[..., Study], go: Any
) -> None:
    study = make(2)
    [trial] = go(study, timeout_s=1e-3)[:1] or [None]
    assert trial is None  # no trial begins
    assert [trial.state for trial in go(study)] == ["done", "done"]


def test_more_trials_may_be_asked_for_later(make: Callable[..., Study], go: Any) -> None:
    study = make(1, name="mine")
    assert len(go(study)) == 1
    assert go(study) == study.trials()  # there is nothing left to do
    more = make(3, name="mine")
    assert more.folder == study.folder
    assert len(go(more)) == 3


def test_another_study_of_the_same_name_is_refused(make: Callable[..., Study]) -> None:
    make(1, name="mine")
    with pytest.raises(ResumeRefused, match="began with other space"):
        make(1, name="mine", space={"rank": "2,8"})
    with pytest.raises(ResumeRefused, match="settings"):
        make(1, name="mine", common={"epochs": 2})
    with pytest.raises(ConfigError, match="cannot be called"):
        make(1, name="../mine")


def test_other_data_is_refused_and_the_study_kept(
    make: Callable[..., Study], go: Any, tmp_path: Path
) -> None:
    study = make(2)
    rows = tmp_path / "rows.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(kept + b'{"text": "one more", "label": "card"}\n')
    with pytest.raises(ResumeRefused, match="not what it was"):
        go(study)
    rows.write_bytes(kept)
    assert [trial.state for trial in go(study)] == ["done", "done"]


CHILD = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("fixtures", sys.argv[1])
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
import torch
from gptflow.models import ModelStore
from gptflow.training.sitting import Watch
from gptflow.training.tuning.study import StudyTable
from gptflow.training.tuning.tuner import tune
import contextlib

torch.set_num_threads(1)
study = StudyTable(Path(sys.argv[2])).find("last")

@contextlib.contextmanager
def watching(number, settings):
    def update(made):
        if (number, made.step) == (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)
    yield Watch(update=update)

task = fixtures.Topic()
task.check()
model = ModelStore(Path(sys.argv[2])).find(sys.argv[3])
tune(study, task, model, context=256, watching=watching)
"""


def kill_in_trial_1(study: Study, tiny: SimpleNamespace) -> None:
    fixtures = Path(__file__).with_name("conftest.py")
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD,
            str(fixtures),
            str(study.folder.parent),
            str(tiny.model().path),
        ],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert made.returncode == -signal.SIGKILL, made.stderr.decode()


def test_a_killed_study_goes_on_where_it_was(
    make: Callable[..., Study], go: Any, tiny: SimpleNamespace
) -> None:
    whole = told(go(make(3, name="whole", common={"checkpoint_minutes": 0})))
    study = make(3, name="parts", common={"checkpoint_minutes": 0})
    kill_in_trial_1(study, tiny)
    assert [trial.state for trial in study.trials()] == ["done", "running"]
    steps: list[tuple[int, int]] = []
    trials = go(study, watching=watching(lambda n, made: steps.append((n, made.step))))
    assert steps[0] == (1, 5)
    assert told(trials) == whole
    assert len(study.runs.list()) == 3


def test_a_trial_that_kills_the_process_is_given_up(
    make: Callable[..., Study], go: Any, tiny: SimpleNamespace
) -> None:
    study = make(3, common={"checkpoint_minutes": 60})
    kill_in_trial_1(study, tiny)
    kill_in_trial_1(study, tiny)  # it began the trial anew, and died of it again
    trials = go(study)
    assert [trial.state for trial in trials] == ["done", "failed", "done"]
    assert "killed 2 times" in str(trials[1].error)


def test_two_processes_do_not_share_a_study(make: Callable[..., Study], go: Any) -> None:
    study = make(1)
    with study.locked(), pytest.raises(ResumeRefused, match="under way"):
        go(study)
    assert [trial.state for trial in go(study)] == ["done"]


def test_a_damaged_study_is_told(make: Callable[..., Study], go: Any, tmp_path: Path) -> None:
    study = make(1)
    (study.folder / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(StudyNotFound, match=r"study\.db"):
        go(study)
    (study.folder / "study.json").write_text(json.dumps({"v": 1}))
    with pytest.raises(StudyNotFound):
        go(study)
    with pytest.raises(StudyNotFound, match="no study 'x'"):
        StudyTable(tmp_path / "studies").find("x")


def test_a_missing_optuna_is_told(
    make: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependency, match="Optuna") as error:
        make(1)
    assert "gptflow[train]" in str(error.value.hint)
    assert not (tmp_path / "studies").exists()
