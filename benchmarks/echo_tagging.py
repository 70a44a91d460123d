"""Tagging with a causal model: the text read once against the text read twice.

    python -m benchmarks.echo_tagging --train TRAIN.conll --test TEST.conll --out results/echo

A causal model that reads a text once has not seen what follows a word when the word is tagged. An
arm for each number of copies trains the same adapter, from the same seed, on the same rows; the
last copy is tagged. Prints entity F1 (strict, as seqeval counts) on the test rows; OUT/results.json
has all figures.

It may be stopped at any time: called again, it goes on where it was. Ends with exit code 1 if two
copies gain less than `--gate` points.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

from gptflow import Input, Output, Prompt, Tag, Tagged, Task
from gptflow.config import load
from gptflow.models import Model, ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.training.data.conll import read_conll
from gptflow.training.data.rows import TaggedText
from gptflow.training.data.source import Source
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.parts import data_file
from gptflow.training.runs import DataFile, RunRecord, RunTable
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.trainer import Update
from gptflow.training.training import begin, train

COPIES = {"once": 1, "twice": 2}


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
        prompt = Prompt("\n".join(["{{ text }}"] * COPIES[arm]), truncate="text")
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


def run_arm(
    arm: str,
    task: Task[Any, Any, Any],
    model: Model,
    files: list[DataFile],
    settings: TrainingSettings,
    context: int,
    out: Path,
) -> RunRecord:
    """Train an arm, or what is left of it."""
    table = RunTable(out / "runs")
    known = {run.record.task: run for run in table.list()}
    run = known.get(task.name) or begin(table, task, model, files, settings)
    if run.state != "done":
        train(
            run, task, model, AdapterStore(out / "adapters"), context=context,
            watch=Watch(update=lambda update: _tell(arm, update)),
        )  # fmt: skip
    return run.record


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
@click.option("--gate", type=float, default=5.0, show_default=True, help="In points of entity F1.")
def main(
    train_path: Path,
    test_path: Path,
    out: Path,
    model_name: str | None,
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
    for arm in COPIES:
        task = make_task(arm, labels)
        record = run_arm(arm, task, model, files, settings, machine.slot_tokens, out)
        found[arm] = {name: metric.value for name, metric in record.metrics.items()}
        found[arm] |= {"tokens": record.tokens, "seconds": record.seconds}
    gain = 100 * (found["twice"]["entity_f1"] - found["once"]["entity_f1"])
    report = {"model": model.name, "settings": chosen, "arms": found, "gain": gain}
    write_whole(out / "results.json", (json.dumps(report, indent=1) + "\n").encode())
    for arm, figures in found.items():
        click.echo(f"read {arm}: entity F1 {figures['entity_f1']:.3f}")
    click.echo(f"{gain:+.1f} points; the gate is {gate:+.1f}")
    if gain < gate:
        sys.exit(1)


if __name__ == "__main__":
    main()
