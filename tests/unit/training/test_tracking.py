"""What a run shows of itself: event files, MLflow, Weights & Biases, plots; and that it goes on."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow.errors import ConfigError, LossNotFinite, MissingDependency, TrainingError
from gptflow.training import curves
from gptflow.training.data.source import Source
from gptflow.training.parts import data_file
from gptflow.training.runs import Run, RunRecord
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.tracking import tracking
from gptflow.training.trainer import Trainer, Update
from gptflow.training.training import begin, train

PNG = b"\x89PNG"


@pytest.fixture
def make(tiny: SimpleNamespace, tmp_path: Path) -> Any:
    """`make(track=...)` is a run that can be trained with `.go()`."""

    def make(track: tuple[str, ...] = (), **settings: Any) -> SimpleNamespace:
        task = tiny.Topic()
        task.check()
        rows = data_file(
            tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6)), "train", "labels", Source()
        )
        chosen = TrainingSettings.of(
            **{"rank": 2, "batch": 16, "epochs": 2, "learning_rate": 3e-3} | settings
        )
        run = begin(tiny.table, task, tiny.model(), [rows], chosen, track=track)

        def go(**watch: Any) -> RunRecord:
            watcher = Watch(**watch)
            return train(run, task, tiny.model(), tiny.store, context=256, watch=watcher)

        return SimpleNamespace(run=run, go=go, folder=run.folder)

    return make


def stop_after(step: int) -> Any:
    def update(made: Update) -> None:
        if made.step == step:
            raise KeyboardInterrupt

    return update


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: by name and step, without the steps that were made again."""
    from tensorboardX.proto import event_pb2

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(path, event_pb2.Event):
            if event.HasField("session_log"):
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def images(folder: Path) -> dict[str, Any]:
    from tensorboardX.proto import event_pb2

    return {
        value.tag: value.image
        for path in folder.glob("events.out.tfevents.*")
        for event in events(path, event_pb2.Event)
        for value in event.summary.value
        if value.HasField("image")
    }


def events(path: Path, kind: Any) -> list[Any]:
    """Records of a TFRecord file, whose checksums are looked at."""
    from tensorboardX.record_writer import masked_crc32c

    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        length, check = struct.unpack_from("<QI", content, at)
        assert check == masked_crc32c(content[at : at + 8])
        body = content[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", content, at + 12 + length) == (masked_crc32c(body),)
        found.append(kind.FromString(body))
        at += 16 + length
    return found


def logged(run: Run) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in run.log()}


def test_every_run_writes_event_files_that_hold_its_losses_and_pictures(make: Any) -> None:
    made = make()
    record = made.go()
    found = scalars(made.folder)
    assert found["train/loss"] == pytest.approx(logged(made.run), rel=1e-6)
    evaluated = {r["step"]: r["figures"]["macro_f1"] for r in made.run.log() if r["figures"]}
    assert len(evaluated) > 1
    assert found["dev/macro_f1"] == pytest.approx(evaluated, rel=1e-6)
    last = found["result/accuracy"]
    assert last == pytest.approx({record.steps: record.metrics["accuracy"].value}, rel=1e-6)
    assert "floor/accuracy" in found
    shown = images(made.folder)
    assert shown.keys() >= {"loss", "report-label/confusion", "report-label/reliability"}
    loss = shown["loss"]
    assert loss.encoded_image_string == (made.folder / curves.FILE).read_bytes()
    assert (loss.width, loss.height) == (960, 720)


def test_a_resumed_run_goes_on_as_the_same_run(make: Any) -> None:
    made = make()
    with pytest.raises(KeyboardInterrupt):
        made.go(update=stop_after(2))
    assert set(scalars(made.folder)["train/loss"]) == {1, 2}
    made.go()
    assert scalars(made.folder)["train/loss"] == pytest.approx(logged(made.run), rel=1e-6)
    assert len(list(made.folder.glob("events.out.tfevents.*"))) == 2


def test_steps_that_a_kill_undid_are_shown_as_they_were_made_again(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(checkpoint_minutes=60)
    monkeypatch.setattr(Trainer, "save", lambda self: None)  # as if it was killed before it could
    with pytest.raises(KeyboardInterrupt):
        made.go(update=stop_after(3))
    monkeypatch.undo()
    [first] = made.folder.glob("events.out.tfevents.*")
    first.write_bytes(first.read_bytes() + b"\x18\x00\x00")  # half a record
    before = first.read_bytes()
    made.go()
    assert first.read_bytes() == before
    first.write_bytes(before[:-3])
    assert scalars(made.folder)["train/loss"] == pytest.approx(logged(made.run), rel=1e-6)


class Recorder:
    """A tracker that keeps what it is told, and raises where it is told to."""

    made: list[Recorder]

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.ended: tuple[RunRecord, Mapping[str, Path]] | None = None
        self.steps: list[int] = []
        Recorder.made.append(self)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise OSError(28, "No space left on device")

    fails = ""

    def begin(self, record: RunRecord) -> None:
        self._called("begin")

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        self._called("update")
        self.steps.append(step)

    def end(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        self._called("end")
        self.ended = (record, files)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """A tracker `recorder`."""

    class Fresh(Recorder):
        pass

    Recorder.made = []
    before = tracking.make
    monkeypatch.setattr(
        tracking,
        "make",
        lambda name, folder: Fresh(folder) if name == "recorder" else before(name, folder),
    )
    return Fresh


@pytest.mark.parametrize("fails", ["begin", "update", "end"])
def test_a_tracker_that_fails_is_told_of_and_the_run_goes_on(
    make: Any, recorders: type[Recorder], fails: str
) -> None:
    recorders.fails = fails
    made = make(("recorder",))
    notes: list[str] = []
    record = made.go(note=notes.append)
    assert record.state == "done"
    told = [note for note in notes if note.startswith("warning")]
    assert told == [
        "warning: recorder shows no more of this run: OSError: [Errno 28] No space left on device"
    ]
    assert recorders.made[-1].calls.count(fails) == 1
    assert len(scalars(made.folder)["train/loss"]) == record.steps


def test_a_full_disk_ends_the_event_file_and_not_the_run(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    from tensorboardX.record_writer import RecordWriter

    monkeypatch.setattr(RecordWriter, "flush", full)
    notes: list[str] = []
    assert make().go(note=notes.append).state == "done"
    assert sum("tensorboard shows no more" in note for note in notes) == 1


def test_trackers_are_told_how_a_run_ends(
    make: Any, recorders: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(("recorder",))
    with pytest.raises(KeyboardInterrupt):
        made.go(update=stop_after(1))
    record, files = recorders.made[-1].ended or pytest.fail("it was not ended")
    assert (record.state, files) == ("running", {})
    monkeypatch.setattr(
        Trainer,
        "_update",
        lambda self, step, batch: (_ for _ in ()).throw(LossNotFinite("no number")),
    )
    with pytest.raises(LossNotFinite):
        made.go()
    record, files = recorders.made[-1].ended or pytest.fail("it was not ended")
    assert (record.state, files) == ("failed", {})
    monkeypatch.undo()


def test_an_unknown_tracker_or_a_missing_package_is_told_before_there_is_a_run(
    make: Any, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no tracker 'mlflo'") as told:
        make(("mlflo",))
    assert "mlflow" in str(told.value.hint)
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("mlflow", "wandb", "tensorboardX"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *args, **kwargs)

    for module in ("mlflow", "wandb"):
        with monkeypatch.context() as patch:
            # TensorBoard's own import is left as it is.
            patch.setattr(
                builtins,
                "__import__",
                lambda n, *a, m=module, **k: (
                    without(n, *a, **k) if n.startswith(m) else imported(n, *a, **k)
                ),
            )
            with pytest.raises(MissingDependency) as missing:
                make((module,))
        assert f"gptflow[{module}]" in str(missing.value.hint)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingDependency, match="tensorboardX"):
            make()
    assert tiny.table.list() == []


def test_runs_are_drawn_alone_and_together(make: Any, tiny: SimpleNamespace) -> None:
    first, second = make(seed=1), make(seed=2, batch=32)
    with pytest.raises(TrainingError, match="no step yet"):
        curves.draw([first.run])
    first.go()
    with pytest.raises(KeyboardInterrupt):
        second.go(update=stop_after(2))
    assert curves.draw([second.run]).startswith(PNG)  # while it goes
    both = curves.draw([first.run, second.run])
    assert both.startswith(PNG)
    assert both != curves.draw([first.run])
    assert (first.folder / curves.FILE).read_bytes() == curves.draw([first.run])


def test_losses_are_smoothed_over_a_twentieth() -> None:
    assert list(curves.smooth([4.0, 2.0, 6.0])) == [4.0, 2.0, 6.0]
    assert list(curves.smooth([1.0] * 39 + [3.0]))[-2:] == [1.0, 2.0]


def test_mlflow_holds_a_run_and_goes_on_with_it(
    make: Any, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = make(("mlflow",))
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        made.go(update=stop_after(2), note=notes.append)
    client = mlflow.MlflowClient(f"sqlite:///{tiny.table.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny.topic").experiment_id
    [found] = client.search_runs([experiment])
    assert found.info.status == "KILLED"
    record = made.go(note=notes.append)
    assert not [note for note in notes if note.startswith("warning")]
    [found] = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == record.id
    assert found.data.params["rank"] == "2"
    assert found.data.metrics["result/accuracy"] == record.metrics["accuracy"].value
    losses = {m.step: m.value for m in client.get_metric_history(found.info.run_id, "train/loss")}
    assert losses == pytest.approx(logged(made.run))
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"loss.png", "report-label"}
    assert str(made.folder) not in str(found.data.params)


def test_a_server_of_mlflow_that_is_not_there_stops_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    notes: list[str] = []
    assert make(("mlflow",)).go(note=notes.append).state == "done"
    assert sum("mlflow shows no more of this run" in note for note in notes) == 1


def test_weights_and_biases_writes_a_run_without_a_network(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    made = make(("wandb",))
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        made.go(update=stop_after(2), note=notes.append)
    record = made.go(note=notes.append)
    assert not [note for note in notes if note.startswith("warning")]
    sittings = sorted((made.folder / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2
    found: dict[int, float] = {}
    for sitting in sittings:
        [path] = sitting.glob("*.wandb")
        assert path.name == f"run-{record.id}.wandb"  # one run, once they are uploaded
        found |= wandb_losses(path)
    assert found == pytest.approx(logged(made.run))
    pictures = {path.parent.name for path in sittings[1].glob("files/media/images/**/*.png")}
    assert pictures == {"images", "report-label"}


def wandb_losses(path: Path) -> dict[int, float]:
    """By step, from the file that `wandb sync` uploads: LevelDB's log format, blocks of 32 KiB."""
    import json

    from wandb.proto import wandb_internal_pb2

    content, at, body, losses = path.read_bytes(), 7, b"", dict[int, float]()
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        body += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(body)
            body = b""
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            if "train/loss" in items:
                losses[record.history.step.num] = json.loads(items["train/loss"])
    return losses
