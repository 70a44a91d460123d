"""Tagging with a causal model: the text read once against the text read twice.

    python -m benchmarks.echo_tagging --train TRAIN.conll --test TEST.conll --out results/echo

A causal model that reads a text once has not seen what follows a word when the word is tagged. An
arm for each number of copies trains the same adapter, from the same seed, on the same rows; the
last copy is tagged. Prints entity F1 (strict, as seqeval counts) on the test rows, and on the
development rows that are cut from the training rows; OUT/results.json has all figures.

`--unmasked` adds an arm that reads the text once with the causal mask of the trained layers taken
away, so that each token sees all others. No engine that keeps keys and values serves such a model,
so it is measured on the development rows alone.

It may be stopped at any time: called again, it goes on where it was. Ends with exit code 1 if two
copies gain less than `--gate` points.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import torch

from gptflow import Input, Output, Prompt, Tag, Tagged, Task
from gptflow.config import load
from gptflow.models import Model, ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.training import training
from gptflow.training.backbone import Backbone
from gptflow.training.data.conll import read_conll
from gptflow.training.data.rows import TaggedText
from gptflow.training.data.source import Source
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.parts import data_file
from gptflow.training.runs import DataFile, RunTable
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.trainer import Update
from gptflow.training.training import begin, train, try_settings


class Arm(NamedTuple):
    """How a text is read."""

    copies: int
    unmasked: bool = False


ARMS = {"once": Arm(1), "twice": Arm(2), "unmasked": Arm(1, unmasked=True)}


class Sentence(Input):
    """What is tagged."""

    text: str


class Names(Output):
    """The names in it."""

    names: list[str]


def make_task(arm: str, labels: tuple[str, ...]) -> Task[Any, Any, Any]:
    """A task that tags the last of the copies."""

    class FindNames(Task[Sentence, Tagged, Names]):
        """Names in a sentence."""

        name = f"echo.{arm}"
        prompt = Prompt("\n".join(["{{ text }}"] * ARMS[arm].copies), truncate="text")
        head = Tag(labels=labels, adapter=arm)

        def postprocess(self, input: Sentence, raw: Tagged) -> Names:
            return Names(names=[span.text for span in raw.spans])

    task = FindNames()
    task.check()
    return task


def labels_of(path: Path) -> tuple[str, ...]:
    """The types of names in a CoNLL file."""
    rows = (row for row in read_conll(path, Source()) if isinstance(row, TaggedText))
    return tuple(sorted({span.label for row in rows for span in row.spans}))


class _Unmasked(Backbone):
    """In the trained layers each token sees all others of its text; frozen ones look back.

    They have not learnt to do otherwise, and never will.
    """

    _frozen = False

    def lower(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        self._frozen = True
        try:
            return super().lower(texts)
        finally:
            self._frozen = False

    def visible(self, lengths: Sequence[int]) -> torch.Tensor | None:
        if self._frozen:
            return None
        places = torch.arange(max(lengths), device=self.device)
        inside = places < torch.tensor(lengths, device=self.device)[:, None]
        return inside[:, None, None, :].expand(-1, 1, len(places), -1)


def run_arm(
    arm: str,
    task: Task[Any, Any, Any],
    model: Model,
    files: list[DataFile],
    settings: TrainingSettings,
    context: int,
    out: Path,
) -> dict[str, float]:
    """Train an arm, or what is left of it: its figures."""
    table = RunTable(out / "runs")
    known = {run.record.task: run for run in table.list()}
    unmasked = ARMS[arm].unmasked
    if unmasked:
        files = [file for file in files if file.split != "test"]
    run = known.get(task.name) or begin(table, task, model, files, settings)
    watch = Watch(update=lambda update: _tell(arm, update))
    if run.state != "done":
        if unmasked:
            with mock.patch.object(training, "Backbone", _Unmasked):
                try_settings(run, task, model, context=context, watch=watch)
        else:
            train(run, task, model, AdapterStore(out / "adapters"), context=context, watch=watch)
    record = run.record
    tested = {} if unmasked else {name: each.value for name, each in record.metrics.items()}
    best = max(step["figures"]["entity_f1"] for step in run.log() if step["figures"])
    return {**tested, "dev_entity_f1": best, "tokens": record.tokens, "seconds": record.seconds}


def _tell(arm: str, update: Update) -> None:
    if update.figures is not None:
        click.echo(
            f"{arm}: step {update.step}/{update.steps}, loss {update.loss:.3f}, "
            f"F1 {update.figures['entity_f1']:.3f}, {update.tokens_per_s:.0f} tokens/s"
        )


@click.command(help=__doc__.replace("    python", "\b\n    python"))
@click.option("--train", "train_path", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--test", "test_path", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "model_name", help="By default the settings'.")
@click.option("--epochs", type=float, default=4.0, show_default=True)
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--rank", type=int, default=16, show_default=True)
@click.option("--layers", type=click.Choice(["all", "upper"]), default="upper", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--learning-rate", type=float, default=4e-4, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--unmasked", is_flag=True, help="Also without the causal mask.")
@click.option("--gate", type=float, default=5.0, show_default=True, help="In points of entity F1.")
def main(
    train_path: Path,
    test_path: Path,
    out: Path,
    model_name: str | None,
    unmasked: bool,
    gate: float,
    **chosen: Any,
) -> None:
    machine = load()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    model = ModelStore(machine.cache_dir, offline=machine.offline).find(model_name or machine.model)
    settings = TrainingSettings.of(**chosen, evaluations=1, serve_floor=False)
    parts = (("train", train_path), ("test", test_path))
    files = [data_file(path, split, "tags", Source()) for split, path in parts]
    labels = labels_of(train_path)
    found: dict[str, dict[str, float]] = {}
    for arm in ARMS if unmasked else ("once", "twice"):
        task = make_task(arm, labels)
        found[arm] = run_arm(arm, task, model, files, settings, machine.slot_tokens, out)
    gain = 100 * (found["twice"]["entity_f1"] - found["once"]["entity_f1"])
    report = {"model": model.name, "settings": chosen, "arms": found, "gain": gain}
    write_whole(out / "results.json", (json.dumps(report, indent=1) + "\n").encode())
    for arm, figures in found.items():
        tested = f"{figures['entity_f1']:.3f}" if "entity_f1" in figures else "not served"
        click.echo(f"{arm}: entity F1 {tested}, on development rows {figures['dev_entity_f1']:.3f}")
    click.echo(f"{gain:+.1f} points; the gate is {gate:+.1f}")
    if gain < gate:
        sys.exit(1)


if __name__ == "__main__":
    main()
