"""Going on from an adapter: what it knew stays, by replay and by springs, and it is measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gptflow import Classify
from gptflow.adapter_info import HEAD_WEIGHTS, LORA_WEIGHTS
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    AdapterNotFound,
    NotTrainable,
    ResumeRefused,
    SplitImpossible,
    UnreadableFile,
)
from gptflow.models.adapter_store import AdapterVersion
from gptflow.training import anchor, continuing, rebalancing, reservoir
from gptflow.training.anchor import Anchor
from gptflow.training.data.rows import LabelledText, Origin
from gptflow.training.data.source import Source
from gptflow.training.example import Example, Text
from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.parent import Parent
from gptflow.training.parts import data_file
from gptflow.training.recording import TaskRecorder
from gptflow.training.reservoir import Kept
from gptflow.training.runs import Run
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.stages import Stage, Stages
from gptflow.training.training import FEW, begin, train

QUICK: dict[str, Any] = {
    "rank": 4, "batch": 16, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "epochs": 2,
}  # fmt: skip
HERE = Origin("rows.jsonl", 1)


def label(text: str, label: str) -> LabelledText:
    return LabelledText(origin=HERE, text=text, labels={"label": label})


def kept(row: Any, part: Any = "train", stage: str = "one") -> Kept:
    return Kept(row, part, stage)


class Bench:
    """Trains chains of adapters on the tiny model."""

    def __init__(self, tiny: SimpleNamespace, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder
        self.notes: list[str] = []

    def begin(
        self,
        rows: list[dict[str, Any]],
        parent: str | None = None,
        *,
        task: Any = None,
        test: list[dict[str, Any]] | None = None,
        kind: Any = "labels",
        model: Any = None,
        **settings: Any,
    ) -> tuple[Run, Any]:
        task = task or self.tiny.Topic()
        task.check()
        number = len(list(self.folder.glob("*.jsonl")))
        path = self.tiny.jsonl(self.folder / f"{number}.jsonl", rows)
        files = [data_file(path, "train", kind, Source())]
        if test is not None:
            path = self.tiny.jsonl(self.folder / f"{number}-test.jsonl", test)
            files.append(data_file(path, "test", kind, Source()))
        model = model or self.tiny.model()
        given = settings if parent else QUICK | settings
        if parent:
            given = {k: v for k, v in QUICK.items() if k != "rank"} | settings
        found = Parent.find(self.tiny.store, parent, model) if parent else None
        run = begin(self.tiny.table, task, model, files, TrainingSettings.of(**given), parent=found)
        return run, task

    def go(self, run: Run, task: Any, model: Any = None, **watch: Any) -> AdapterVersion:
        record = train(
            run, task, model or self.tiny.model(), self.tiny.store, context=256,
            watch=Watch(note=self.notes.append, **watch),
        )  # fmt: skip
        assert record.version is not None
        return self.tiny.store.find(record.version)  # type: ignore[no-any-return]

    def train(self, *args: Any, **options: Any) -> AdapterVersion:
        return self.go(*self.begin(*args, **options))


@pytest.fixture
def bench(tiny: SimpleNamespace, tmp_path: Path) -> Bench:
    folder = tmp_path / "data"
    folder.mkdir()
    return Bench(tiny, folder)


# --- springs


def test_springs_pull_back_as_strongly_as_a_weight_matters() -> None:
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("held", "free")}
    fisher = {"held": torch.tensor([1.0, 4.0])}
    springs = Anchor(parameters, fisher, strength=3.0)
    with torch.no_grad():
        parameters["held"].add_(0.5)
    assert springs.pull() == pytest.approx(0.5 * 3 * (1 + 4) * 0.25)
    assert parameters["held"].grad is not None
    assert parameters["held"].grad.tolist() == [1.5, 6.0]
    assert parameters["free"].grad is None


def test_the_fisher_information_is_the_mean_squared_gradient(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    examples = [Example((Text((1,)),), (1.0, n), 1.0, 0) for n in (1.0, 3.0)]

    def backward(some: Any) -> None:
        (weight * torch.tensor(some[0].target)).sum().backward()

    found = anchor.measure({"w": weight}, examples, backward)
    assert found["w"].tolist() == [1.0, 5.0]
    anchor.save(tmp_path, found, key="a")
    again = anchor.load(tmp_path, {"w": weight}, key="a")
    assert again is not None
    assert torch.equal(again["w"], found["w"])
    assert anchor.load(tmp_path, {"w": weight}, key="b") is None
    (tmp_path / anchor.FILE).write_bytes((2**63).to_bytes(8, "little"))
    with pytest.raises(ResumeRefused, match="damaged"):
        anchor.load(tmp_path, {"w": weight}, key="a")


# --- going on


def rows_of(tiny: SimpleNamespace, *topics: int, each: int = 12) -> list[dict[str, Any]]:
    names = [tiny.TOPICS[n] for n in topics]
    return [row for row in tiny.topic_rows(each) if row["label"] in names]


def test_it_begins_with_the_parents_weights_and_settings(bench: Bench) -> None:
    first = bench.train(rows_of(bench.tiny, 0, 1, 2), layers="upper", pooling="mean", in_scope=0.9)
    run, task = bench.begin(
        rows_of(bench.tiny, 3, 4), first.reference, epochs=0.1, learning_rate=1e-12,
        head_learning_rate=1e-12, rebalance=False,
    )  # fmt: skip
    settings = run.record.settings
    assert (settings.rank, settings.layers, settings.pooling) == (4, "upper", "mean")
    assert settings.in_scope == 0.9
    second = bench.go(run, task)
    for name in (LORA_WEIGHTS, HEAD_WEIGHTS):
        before, after = load_file(first.folder / name), load_file(second.folder / name)
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert (
        json.loads((second.folder / "metrics.json").read_text())["continued_from"] == first.sha256
    )
    names = [data.sha256 for data in second.manifest.data]
    assert names == [*(data.sha256 for data in first.manifest.data), run.record.data[0].sha256]
    assert not (run.folder / continuing.REPLAYED).exists()
    # Rows are users' data: none is in the adapter.
    texts = "".join(p.read_text(errors="ignore") for p in second.folder.iterdir())
    assert not any(k.row.content in texts for k in reservoir.load(run.folder) or ())


def test_new_labels_get_new_rows_and_old_ones_keep_theirs_by_name(bench: Bench) -> None:
    tiny = bench.tiny

    class Fewer(tiny.Topic):  # type: ignore[name-defined,misc]
        """The same with fewer labels."""

        head = Classify(labels=(tiny.TOPICS[2], tiny.TOPICS[0], "gone"), adapter="topic")

    old = [{"text": f"{r['text']}", "label": r["label"]} for r in rows_of(tiny, 0, 2)]
    old += [{"text": f"gone {n}", "label": "gone"} for n in range(8)]
    first = bench.train(old, task=Fewer())
    second = bench.train(
        rows_of(tiny, 0, 3), first.reference, epochs=0.1, learning_rate=1e-12,
        head_learning_rate=1e-12, rebalance=False,
    )  # fmt: skip
    before = load_file(first.folder / HEAD_WEIGHTS)
    after = load_file(second.folder / HEAD_WEIGHTS)
    for part in ("label.weight", "label.bias"):
        assert torch.allclose(after[part][2], before[part][0], atol=1e-6)
        assert torch.allclose(after[part][0], before[part][1], atol=1e-6)
        assert after[part][[1, *range(3, 15)]].abs().max() < 1e-6
    assert any("new to it: cash, fee" in note for note in bench.notes)
    assert any("labels that the task has no more" in note for note in bench.notes)


def test_another_base_an_altered_adapter_and_other_shapes_are_refused(bench: Bench) -> None:
    tiny = bench.tiny
    first = bench.train(rows_of(tiny, 0, 1))
    rows = rows_of(tiny, 2, 3)
    with pytest.raises(AdapterMismatch, match="was trained on"):
        bench.begin(rows, first.reference, model=tiny.model("qwen3"))
    with pytest.raises(NotTrainable, match="has rank 4, not 8"):
        bench.begin(rows, first.reference, rank=8)
    with pytest.raises(NotTrainable, match="has method lora, not full"):
        bench.begin(rows, first.reference, method="full")
    with pytest.raises(AdapterNotFound):
        bench.begin(rows, "topic@20200101-000000-000000000000")
    run, task = bench.begin(tiny.tag_rows(), first.reference, kind="tags", task=tiny.Names())
    with pytest.raises(UnreadableFile, match="are LabelledTexts"):
        bench.go(run, task)
    run, task = bench.begin(
        tiny.tag_rows(), first.reference, kind="tags", task=tiny.Names(), replay=0
    )
    with pytest.raises(AdapterMismatch, match="no head 'tags'"):
        bench.go(run, task)
    path = first.folder / HEAD_WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AdapterCorrupt):
        bench.begin(rows, first.reference)


def test_without_old_rows_it_is_refused_unless_it_is_meant(bench: Bench) -> None:
    tiny = bench.tiny
    first = bench.train(rows_of(tiny, 0, 1), keep=0)
    with pytest.raises(NotTrainable, match="would be forgotten"):
        bench.begin(rows_of(tiny, 2, 3), first.reference)
    with pytest.raises(NotTrainable, match="would be forgotten"):
        bench.begin(rows_of(tiny, 2, 3), first.reference, replay=0, ewc=1.0)
    # As an adapter that a plugin ships, in a folder of its own.
    shipped = bench.folder / "shipped"
    shutil.copytree(first.folder, shipped)
    second = bench.train(rows_of(tiny, 2, 3), str(shipped), replay=0)
    assert tiny.table.find(second.manifest.version).record.parent == str(shipped)


@pytest.mark.parametrize("more", [{}, {"ewc": 100.0, "layers": "upper"}])
def test_a_run_that_goes_on_resumes_exactly(bench: Bench, more: dict[str, Any]) -> None:
    tiny = bench.tiny
    layers = {"layers": more["layers"]} if "layers" in more else {}
    first = bench.train(rows_of(tiny, 0, 1, 2), **layers)
    rows = rows_of(tiny, 3, 4)
    options = {"replay": 0.3, "dropout": 0.2, "epochs": 3, **more}
    whole = bench.train(rows, first.reference, **options)
    run, task = bench.begin(rows, first.reference, **options)

    def stop(update: Any) -> None:
        if update.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.go(run, task, update=stop)
    # What the parent's run kept may be gone by now.
    shutil.rmtree(tiny.table.folder / first.manifest.version)
    resumed = bench.go(run, task)
    for name in (LORA_WEIGHTS, HEAD_WEIGHTS):
        assert resumed.manifest.files[name] == whole.manifest.files[name]


@pytest.mark.parametrize("case", ["tags", "scores", "dialogues"])
def test_other_heads_go_on_too(bench: Bench, case: str) -> None:
    tiny = bench.tiny
    name, rows = {
        "tags": ("Names", tiny.tag_rows()),
        "scores": ("Fit", tiny.score_rows()),
        "dialogues": ("Reply", tiny.dialogue_rows()),
    }[case]
    task = getattr(tiny, name)()
    half = len(rows) // 6 * 3
    first = bench.train(rows[:half], task=task, kind=case)
    second = bench.train(rows[half:], first.reference, task=task, kind=case, epochs=1, ewc=1.0)
    stages = Stages.load(tiny.table.folder / second.manifest.version)
    assert stages is not None
    assert len(stages.stages) == 2
    assert stages.matrix[1][0] is not None
    few = len(rows) - half < FEW  # then none are put aside
    assert stages.stages[1].on == ("nothing" if few else "dev")
    assert (stages.matrix[1][1] is None) is few


def test_a_few_rows_will_do_where_old_ones_are_there(bench: Bench) -> None:
    tiny = bench.tiny
    first = bench.train(rows_of(tiny, 0, 1, 2))
    one = [{"text": "a single corrected row", "label": tiny.TOPICS[3]}]
    second = bench.train(one, first.reference)
    record = tiny.table.find(second.manifest.version).record
    assert record.rows["train"] == 1
    assert record.rows["old"] > 20
    found = reservoir.load(tiny.table.folder / record.id)
    assert "a single corrected row" in {k.row.content for k in found or ()}
    with pytest.raises(SplitImpossible):
        bench.train(one, first.reference, replay=0)
    # A corrected label is not taught again as it was.
    was = next(k.row for k in found or () if k.part == "train" and k.stage != record.id)
    corrected = [{"text": was.text.upper(), "label": tiny.TOPICS[4]}]
    third = bench.train(corrected, second.reference)
    rows = reservoir.load(tiny.table.folder / third.manifest.version)
    labels = [k.row.classes for k in rows or () if k.row.content.lower() == was.text.lower()]
    assert labels == [(tiny.TOPICS[4],)]


def test_replay_forgets_less_and_springs_hold(bench: Bench) -> None:
    """Three stages of three topics each: what is left of the first ones."""
    tiny = bench.tiny
    tests = [rows_of(tiny, *range(3 * n, 3 * n + 3), each=16)[::4] for n in range(2)]
    stages = [
        [row for row in rows_of(tiny, *range(3 * n, 3 * n + 3), each=16) if row not in tests[n]]
        for n in range(2)
    ]
    learnt: dict[str, Any] = {"epochs": 12, "patience": 99, "batch": 8}
    first = bench.train(stages[0], test=tests[0], **learnt)
    kept_lora = load_file(first.folder / LORA_WEIGHTS)
    found: dict[str, float] = {}
    moved: dict[str, float] = {}
    arms: dict[str, dict[str, Any]] = {
        "naive": {"replay": 0}, "replay": {"replay": 0.3}, "springs": {"replay": 0, "ewc": 1e6},
    }  # fmt: skip
    for name, options in arms.items():
        second = bench.train(stages[1], first.reference, test=tests[1], **learnt, **options)
        made = Stages.load(tiny.table.folder / second.manifest.version)
        assert made is not None
        assert made.matrix[0][0] == pytest.approx(first.manifest.metrics["accuracy"].value)
        assert made.matrix[1][1] == pytest.approx(second.manifest.metrics["accuracy"].value)
        assert made.forgetting is not None
        found[name] = made.forgetting
        lora = load_file(second.folder / LORA_WEIGHTS)
        moved[name] = sum(float((lora[key] - kept_lora[key]).norm()) for key in lora)
    assert found["naive"] > 0.3
    assert found["replay"] < found["naive"] - 0.2
    assert moved["springs"] < 0.5 * moved["naive"]


def test_it_is_undone_where_the_development_split_is_none_the_better(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(head: nn.Linear, vectors: torch.Tensor, gold: torch.Tensor) -> None:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    first = bench.train(rows_of(bench.tiny, 0, 1, 2), epochs=6)
    options: dict[str, Any] = {"epochs": 4}
    plain = bench.train(rows_of(bench.tiny, 3, 4), first.reference, rebalance=False, **options)
    monkeypatch.setattr(rebalancing, "fit_balanced", spoil)
    spoilt = bench.train(rows_of(bench.tiny, 3, 4), first.reference, **options)
    assert spoilt.manifest.metrics == plain.manifest.metrics


def test_more_is_left_of_what_was_learnt_first(bench: Bench, tiny: SimpleNamespace) -> None:
    first = bench.train(rows_of(tiny, 0, 1, 2, 3), epochs=8)
    test = rows_of(tiny, *range(7), each=12)[::5]
    found = {}
    for balanced in (False, True):
        second = bench.train(
            rows_of(tiny, 4, 5, 6), first.reference, test=test, epochs=4, rebalance=balanced
        )
        found[balanced] = second.manifest.metrics["macro_f1"].value
    assert found[True] > found[False]


def test_the_figures_of_a_matrix() -> None:
    def stage(name: str) -> Stage:
        return Stage(run=name, rows=10, on="test")

    made = Stages(figure="accuracy", stages=(stage("a"),), matrix=((0.8,),))
    assert made.backward_transfer is made.forgetting is None
    made = made.extended(stage("b"), (0.9, 0.7)).extended(stage("c"), (0.6, 0.75, 1.0))
    assert made.matrix == ((0.8, None, None), (0.9, 0.7, None), (0.6, 0.75, 1.0))
    assert made.mean == pytest.approx((0.6 + 0.75 + 1.0) / 3)
    assert made.backward_transfer == pytest.approx((-0.2 + 0.05) / 2)
    assert made.forgetting == pytest.approx((0.3 - 0.05) / 2)
    told = made.as_markdown()
    assert "| 3: c | 10 test | 0.6000 | 0.7500 | 1.0000 |" in told
    assert "- backward transfer: -0.0750" in told


def test_a_stage_whose_test_file_is_gone_is_left_empty(bench: Bench, tiny: SimpleNamespace) -> None:
    rows = rows_of(tiny, 0, 1, 2)
    first = bench.train(rows[::2], test=rows[1::2])
    next(bench.folder.glob("*-test.jsonl")).unlink()
    second = bench.train(rows_of(tiny, 3, 4), first.reference)
    folder = tiny.table.folder / second.manifest.version
    made = Stages.load(folder)
    assert made is not None
    assert made.matrix[1][0] is None
    assert made.stages[1].on == "dev"
    assert any("cannot be measured" in note for note in bench.notes)
    assert "# accuracy after each stage" in (folder / "stages.md").read_text()
    third = bench.train(rows_of(tiny, 5, 6), second.reference)
    made = Stages.load(tiny.table.folder / third.manifest.version)
    assert made is not None
    assert [value is None for value in made.matrix[2]] == [True, False, False]


def test_labels_are_adjusted_by_how_often_they_come(bench: Bench) -> None:
    tiny = bench.tiny
    task = tiny.Topic()
    task.check()
    vocabulary = Vocabulary.from_folder(tiny.model().path)
    recorder = TaskRecorder(task, vocabulary, context=256)
    objective = LabelObjective(recorder, vocabulary, task.head, TrainingSettings())
    new = [label(f"new {n}", "fee") for n in range(6)] + [label("new", "limit")] * 2
    old = [label("old", "card"), label("old", "cash"), label("old", "refund")]
    objective.mix(new, old, 0.1)
    found = dict(zip(tiny.TOPICS, objective._offsets["label"].exp().tolist(), strict=True))
    assert found["fee"] == pytest.approx(0.9 * 6 / 8)
    assert found["limit"] == pytest.approx(0.9 * 2 / 8)
    assert found["card"] == pytest.approx(0.1 / 3)
    assert found["hotel"] == found["fee"]  # it never comes, and must not win for that


def test_the_benchmark_goes_on_where_it_was(
    tiny: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domains = {"bank": list(tiny.TOPICS[:3]), "home": list(tiny.TOPICS[3:6])}
    rows = [[row["text"], row["label"]] for row in tiny.topic_rows(24)]
    folder = tmp_path / "clinc"
    folder.mkdir()
    (folder / "domains.json").write_text(json.dumps(domains))
    data = {"train": rows, "val": rows[::4], "test": rows[::3]}
    (folder / "data_full.json").write_text(json.dumps(data))
    path = Path(__file__).parents[3] / "benchmarks" / "continual.py"
    spec = importlib.util.spec_from_file_location("continual_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    args = (
        str(folder), "--out", str(tmp_path / "out"), "--model", str(tiny.model().path),
        "--rows", "8", "--epochs", "1", "--rank", "2", "--batch", "8",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["continual.py", *args])

    def call() -> str:
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    told = call()
    assert "naive: stage 2 of 2, home" in told
    assert "backward transfer" in told
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["arms"]) == {"naive", "replay 10%"}
    arm = found["arms"]["replay 10%"]
    assert [len(row) for row in arm["matrix"]] == [2, 2]
    assert arm["forgetting"] is not None
    again = call()
    assert "stage" not in again.split("after stage")[0]  # all stages are done
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
