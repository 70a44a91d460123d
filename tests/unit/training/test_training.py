"""From rows to an adapter, on a tiny random model: it learns, is served as trained, resumes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptflow.adapter import ClassifyHead
from gptflow.adapter_info import HEAD_WEIGHTS, LORA_WEIGHTS
from gptflow.errors import (
    AdapterMismatch,
    AdapterNotSaved,
    BadLabel,
    EmptyData,
    LossNotFinite,
    OneClass,
    ReloadDiffers,
    ResumeRefused,
)
from gptflow.models import ModelStore
from gptflow.models.adapter_store import AdapterVersion
from gptflow.training import artefact, checkpoint
from gptflow.training.backbone import Backbone
from gptflow.training.data.source import Source
from gptflow.training.parts import data_file
from gptflow.training.runs import Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.training import begin, train

QUICK: dict[str, Any] = {
    "rank": 4, "batch": 16, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "epochs": 2,
    "serve_floor": False,
}  # fmt: skip


def make_run(
    tiny: SimpleNamespace,
    tmp_path: Path,
    task: Any,
    rows: list[dict[str, Any]],
    kind: Any,
    *,
    model: Any = None,
    test: list[dict[str, Any]] | None = None,
    gates: dict[str, float] | None = None,
    **settings: Any,
) -> Run:
    task.check()
    files = [data_file(tiny.jsonl(tmp_path / "rows.jsonl", rows), "train", kind, Source())]
    if test is not None:
        path = tiny.jsonl(tmp_path / "test.jsonl", test)
        files.append(data_file(path, "test", kind, Source(), name="Held out", licence="CC0"))
    chosen = TrainingSettings.of(**QUICK | settings)
    return begin(tiny.table, task, model or tiny.model(), files, chosen, gates=gates)


def go(
    tiny: SimpleNamespace, run: Run, task: Any, model: Any = None, **watch: Any
) -> AdapterVersion:
    record = train(run, task, model or tiny.model(), tiny.store, context=256, watch=Watch(**watch))
    assert record.version is not None
    return tiny.store.find(record.version)


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.log()]


CASES = {
    "labels": ("Topic", "topic_rows", "labels"),
    "tags": ("Names", "tag_rows", "tags"),
    "scores": ("Fit", "score_rows", "scores"),
    "dialogues": ("Reply", "dialogue_rows", "dialogues"),
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("case", CASES)
def test_every_head_learns_and_is_served_as_it_was_trained(
    tiny: SimpleNamespace, tmp_path: Path, case: str, architecture: str
) -> None:
    # `train` itself asks the engine what it asked the trained model, and raises `ReloadDiffers`.
    name, rows, kind = CASES[case]
    task, model = getattr(tiny, name)(), tiny.model(architecture)
    few = getattr(tiny, rows)()[::3] if case == "labels" else getattr(tiny, rows)()
    pooling = "mean" if case == "labels" else "last"
    run = make_run(
        tiny, tmp_path, task, few, kind, model=model, epochs=9, patience=99, pooling=pooling
    )
    version = go(tiny, run, task, model)
    found = losses(run)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    assert run.record.state == "done"
    assert run.record.version == version.reference
    assert version.manifest.base.sha256 == (model.sha256,)
    assert tiny.store.verify(version, base=model.sha256) == version


def test_upper_layers_are_trained_on_stored_activations(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    task = tiny.Topic()
    run = make_run(tiny, tmp_path, task, tiny.topic_rows(6), "labels", layers="upper", epochs=1)
    done: list[tuple[int, int]] = []
    version = go(tiny, run, task, lower=lambda *each: done.append(each))
    assert done[-1][0] == done[-1][1] > 0
    kept = load_file(version.folder / LORA_WEIGHTS)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
    names = set(kept)
    assert {name.split(".layers.")[1].split(".")[0] for name in names} == {"2", "3"}
    assert not (run.folder / "lower.f32").exists()
    # Without the store the same steps give the same weights but for rounding.
    backbone = Backbone.load(
        tiny.model().path, TrainingSettings(layers="upper", rank=4), model_id="tiny"
    )
    texts = [(5, 6, 7, 8), (9, 10)]
    lower = backbone.lower(texts)
    with torch.no_grad():
        whole, short = backbone.hidden(texts), backbone.hidden(texts, lower)
    assert torch.allclose(whole[0], short[0], atol=1e-5)
    assert torch.allclose(whole[1, :2], short[1, :2], atol=1e-5)


def test_the_head_alone_can_be_trained(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Topic()
    run = make_run(tiny, tmp_path, task, tiny.topic_rows(6), "labels", method="head")
    version = go(tiny, run, task)
    assert not (version.folder / LORA_WEIGHTS).exists()
    assert version.manifest.lora_rank is None


def test_all_weights_can_be_trained_and_are_a_model_then(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    task = tiny.Topic()
    run = make_run(
        tiny, tmp_path, task, tiny.topic_rows(6), "labels", method="full", learning_rate=1e-4
    )
    version = go(tiny, run, task)
    made = ModelStore(tmp_path / "cache").find(str(run.record.trained_model))
    assert made.sha256 != tiny.model().sha256
    assert tiny.store.verify(version, base=made.sha256) == version
    with pytest.raises(AdapterMismatch):
        tiny.store.verify(version, base=tiny.model().sha256)


def test_heads_without_labels_are_masked(tiny: SimpleNamespace, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for n in range(40):
        topic, mood = tiny.TOPICS[n % 3], ("good", "bad")[n % 2]
        text = f"the {topic} is {mood} {n}"
        known = {"topic": topic, "mood": None} if n < 20 else {"topic": None, "mood": mood}
        rows.append({"text": text, **known})
    task = tiny.Both()
    task.check()
    source = Source(labels={"topic": "topic", "mood": "mood"})
    path = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    run = begin(
        tiny.table, task, tiny.model(), [data_file(path, "train", "labels", source)],
        TrainingSettings.of(**QUICK | {"epochs": 8, "dev": 0.2, "patience": 20}),
    )  # fmt: skip
    version = go(tiny, run, task)
    found = losses(run)
    assert found[-1] < 0.8 * found[0]
    assert set(version.manifest.heads) == {"topic", "mood"}
    assert {"topic.macro_f1", "mood.macro_f1", "macro_f1"} <= set(version.manifest.metrics)
    assert run.record.warnings == ()


def test_a_head_that_no_row_has_a_label_for_is_told(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Both()
    task.check()
    rows = [
        {"text": f"it is {mood} {n}", "mood": mood} for n in range(10) for mood in ("good", "bad")
    ]
    path = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    data = data_file(path, "train", "labels", Source(labels={"mood": "mood"}))
    run = begin(tiny.table, task, tiny.model(), [data], TrainingSettings.of(**QUICK))
    go(tiny, run, task)
    assert run.record.warnings == ("no row has a label for the head 'topic', which learnt nothing",)


def test_what_is_made_says_what_it_was_made_of(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Topic()
    rows = tiny.topic_rows(6)
    train, test = [row for n, row in enumerate(rows) if n % 6], rows[::6]
    gates = {"accuracy": 0.99}
    run = make_run(tiny, tmp_path, task, train, "labels", test=test, gates=gates, dev=0.2)
    version = go(tiny, run, task)
    manifest = version.manifest
    assert manifest.task == "tiny.topic"
    assert manifest.prompt == task.prompt.sha256
    assert manifest.lora_rank == 4
    head = manifest.heads["label"]
    assert isinstance(head, ClassifyHead)
    assert head.labels == tiny.TOPICS
    assert head.temperature != 1.0
    by_split = {data.split: data for data in manifest.data}
    assert by_split["test"].name == "Held out"
    assert by_split["test"].licence == "CC0"
    assert by_split["test"].rows == 15
    assert manifest.metrics["macro_f1"].floor is not None
    assert any(words.startswith("accuracy is") for words in manifest.missed())
    assert set(manifest.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "head.safetensors",
        "metrics.json",
    }  # fmt: skip
    card = (version.folder / "README.md").read_text()
    assert "Measured on the test file" in card
    assert "CC0" in card
    texts = json.dumps(json.loads((version.folder / "metrics.json").read_text()))
    assert not any(row["text"] in texts for row in rows)  # the data stays where it is
    assert str(tmp_path) not in texts + card + manifest.to_json()


def test_the_best_weights_are_kept_and_it_stops_early(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    task = tiny.Topic()
    run = make_run(
        tiny, tmp_path, task, tiny.topic_rows(8), "labels",
        epochs=40, patience=2, evaluations=4, learning_rate=2e-2,
    )  # fmt: skip
    version = go(tiny, run, task)
    log = run.log()
    measured = [each["figures"]["macro_f1"] for each in log if each["figures"]]
    assert log[-1]["step"] < log[-1]["steps"]
    assert max(measured[-2:]) <= max(measured[:-2])
    details = json.loads((version.folder / "metrics.json").read_text())
    assert details["best_step"] < log[-1]["step"]
    best = max(details["history"], key=lambda each: each["macro_f1"])
    # Rounding LoRA's matrices to half precision changes little.
    assert abs(version.manifest.metrics["macro_f1"].value - best["macro_f1"]) < 0.1


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    task = tiny.Topic()
    digests = []
    for seed in (0, 0, 1):
        run = make_run(
            tiny, tmp_path, task, tiny.topic_rows(6), "labels", seed=seed, epochs=1, dropout=0.2
        )
        digests.append(go(tiny, run, task).manifest.files[LORA_WEIGHTS])
    assert digests[0] == digests[1] != digests[2]


SCRIPT = """
import importlib.util, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny_conftest", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
from gptflow.models import ModelStore
from gptflow.models import ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.training.runs import RunTable
from gptflow.training.training import train
root, run = Path(sys.argv[2]), RunTable(Path(sys.argv[2]) / "runs").find(sys.argv[3])
task = tiny.Topic()
task.check()
train(run, task, ModelStore(root / "cache").find(sys.argv[4]), AdapterStore(root / "adapters"),
      context=256)
"""


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    task = tiny.Topic()
    options: dict[str, Any] = {
        "epochs": 3, "layers": "upper", "dropout": 0.2, "evaluations": 1,
    }  # fmt: skip
    rows = tiny.topic_rows(8)
    whole = go(tiny, make_run(tiny, tmp_path, task, rows, "labels", **options), task)
    run = make_run(tiny, tmp_path, task, rows, "labels", checkpoint_minutes=0.0005, **options)
    conftest = Path(__file__).with_name("conftest.py")
    process = subprocess.Popen(
        [
            sys.executable, "-c", SCRIPT, str(conftest), str(tmp_path), run.folder.name,
            str(tiny.model().path),
        ],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while len(run.log()) < 9 or not (run.folder / checkpoint.FILE).exists():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < until
            time.sleep(0.005)
        assert run.state == "running"
        with pytest.raises(ResumeRefused, match="another process"):
            go(tiny, run, task)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert run.state == "interrupted"
    reached = len(run.log())
    kept = checkpoint.load(run.folder)
    assert kept is not None
    assert 0 < kept.progress.step <= reached < 21
    steps: list[int] = []
    resumed = go(tiny, run, task, update=lambda update: steps.append(update.step))
    assert steps[0] == kept.progress.step + 1  # it did not begin anew
    for name in (LORA_WEIGHTS, HEAD_WEIGHTS):
        assert resumed.manifest.files[name] == whole.manifest.files[name]
    assert not (run.folder / checkpoint.FILE).exists()
    with pytest.raises(ResumeRefused, match="is done"):
        go(tiny, run, task)


def test_whoever_stops_a_run_can_go_on_with_it(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Topic()
    rows = tiny.topic_rows(6)
    whole = go(tiny, make_run(tiny, tmp_path, task, rows, "labels"), task)
    run = make_run(tiny, tmp_path, task, rows, "labels")

    def stop(update: Any) -> None:
        if update.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tiny, run, task, update=stop)
    assert run.state == "interrupted"
    resumed = go(tiny, run, task)
    assert resumed.manifest.files[LORA_WEIGHTS] == whole.manifest.files[LORA_WEIGHTS]


def stopped(tiny: SimpleNamespace, tmp_path: Path, task: Any) -> Run:
    run = make_run(tiny, tmp_path, task, tiny.topic_rows(6), "labels")

    def stop(update: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tiny, run, task, update=stop)
    return run


def test_a_run_goes_on_only_with_what_it_began_with(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Topic()
    run = stopped(tiny, tmp_path, task)
    with pytest.raises(ResumeRefused, match="other weights"):
        go(tiny, run, task, dataclasses.replace(tiny.model(), sha256="0" * 64))
    path = tmp_path / "rows.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    with pytest.raises(ResumeRefused, match="is not what it was"):
        go(tiny, run, task)
    path.write_bytes(before)
    kept = run.folder / checkpoint.FILE
    data = kept.read_bytes()
    kept.write_bytes((2**63).to_bytes(8, "little") + data[8:])
    with pytest.raises(ResumeRefused, match="is damaged"):
        go(tiny, run, task)
    kept.write_bytes(data)
    run.update(settings=TrainingSettings.of(**QUICK | {"rank": 2}))
    with pytest.raises(ResumeRefused, match="of other settings"):
        go(tiny, run, task)
    assert run.record.state == "failed"
    assert str(run.record.error).startswith("[GF903]")


def test_a_loss_that_is_no_number_ends_the_run(tiny: SimpleNamespace, tmp_path: Path) -> None:
    task = tiny.Topic()
    run = make_run(
        tiny, tmp_path, task, tiny.topic_rows(6), "labels", learning_rate=1e30, clip=1e30
    )
    with pytest.raises(LossNotFinite, match="--learning-rate"):
        go(tiny, run, task)
    assert run.record.state == "failed"
    assert tiny.store.versions("topic") == []


def test_a_full_disk_keeps_the_last_checkpoint(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.Topic()
    run = stopped(tiny, tmp_path, task)
    kept = (run.folder / checkpoint.FILE).read_bytes()

    def full(*_: Any, **__: Any) -> None:
        (run.folder / f".{checkpoint.FILE}").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.safetensors.torch, "save_file", full)
        from gptflow.errors import TrainingError

        with pytest.raises(TrainingError, match="No space left"):
            go(tiny, run, task)
    assert (run.folder / checkpoint.FILE).read_bytes() == kept
    assert not (run.folder / f".{checkpoint.FILE}").exists()
    go(tiny, run, task)


def test_a_full_disk_while_the_adapter_is_saved_leaves_none(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.Topic()
    run = make_run(tiny, tmp_path, task, tiny.topic_rows(6), "labels", epochs=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "model_card", full)
        with pytest.raises(AdapterNotSaved, match="No space left"):
            go(tiny, run, task)
    assert tiny.store.versions("topic") == []
    assert [p.name for p in (tiny.store.folder / "topic").iterdir()] == [".lock"]
    # Nothing is trained again: the checkpoint is of the last step.
    steps: list[int] = []
    go(tiny, run, task, update=lambda update: steps.append(update.step))
    assert steps == []


def test_what_answers_otherwise_when_it_is_loaded_is_not_kept(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.Topic()
    run = make_run(tiny, tmp_path, task, tiny.topic_rows(6), "labels", epochs=1)
    state = Backbone.lora_state

    def other(self: Backbone) -> Any:
        config, tensors = state(self)
        return config, {name: 1.05 * tensor for name, tensor in tensors.items()}

    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "lora_state", other)
        with pytest.raises(ReloadDiffers, match="answers otherwise"):
            go(tiny, run, task)
    assert tiny.store.versions("topic") == []


@pytest.mark.parametrize(
    ("rows", "error", "told"),
    [
        ([{"text": f"t{n}", "label": "card"} for n in range(30)], OneClass, "'card'"),
        (
            [{"text": f"t{n}", "label": ("card", "boat")[n % 2]} for n in range(30)],
            BadLabel,
            "does not know 'boat'",
        ),
        ([], EmptyData, "no rows"),
    ],
)
def test_rows_that_will_not_do_are_refused(
    tiny: SimpleNamespace, tmp_path: Path, rows: Any, error: type[Exception], told: str
) -> None:
    task = tiny.Topic()
    run = make_run(tiny, tmp_path, task, rows, "labels")
    with pytest.raises(error, match=told):
        go(tiny, run, task)
    assert tiny.store.aliases() == ()


def test_training_needs_no_queue_and_no_grammar() -> None:
    program = (
        "import sys, gptflow.training.training, gptflow.training.objectives.choice\n"
        "print([m for m in ('celery', 'redis', 'kombu', 'llguidance') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("celery") is not None
