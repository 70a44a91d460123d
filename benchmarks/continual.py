"""Continual learning: the intents of CLINC150, learnt domain by domain, and what is forgotten.

    python benchmarks/continual.py FOLDER --out results/continual
    python benchmarks/continual.py FOLDER --out results/small --domains 3 --rows 10 --epochs 1

FOLDER holds CLINC150 as its authors give it: `data_full.json`, plain or gzipped, and
`domains.json`, which names the intents of each domain. One head has the intents of all domains;
each stage goes on from the adapter of the stage before, with the training rows of one domain. After
each stage the adapter is asked the test rows of all domains so far, and may answer with any intent
of any domain. The arms differ in how much of each batch is old rows.

It may be stopped at any time: called again, it goes on where it was. Prints a table for each arm;
OUT/results.json has all figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptflow import Chosen, Classify, Input, Output, Prompt, Task
from gptflow.config import load
from gptflow.models import Model, ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.training.data.source import Source
from gptflow.training.evaluation.summary import write_whole
from gptflow.training.parent import Parent
from gptflow.training.parts import data_file
from gptflow.training.runs import Run, RunTable
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.stages import Stages
from gptflow.training.trainer import Update
from gptflow.training.training import begin, train

ALIAS = "intent"
PARTS = {"train": "train", "val": "dev", "test": "test"}


class Request(Input):
    """What somebody says."""

    text: str


class Intent(Output):
    """What is meant by it."""

    label: str


def make_task(intents: Sequence[str]) -> Task[Any, Any, Any]:
    """A task that chooses one of the intents."""

    class ChooseIntent(Task[Request, Chosen, Intent]):
        """The intent of a request."""

        name = "continual.intent"
        prompt = Prompt("Request: {{ text }}\nIntent:", truncate="text")
        head = Classify(labels=tuple(intents), adapter=ALIAS)

        def postprocess(self, input: Request, raw: Chosen) -> Intent:
            return Intent(label=raw.label)

    task = ChooseIntent()
    task.check()
    return task


def read_domains(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """The intents of each domain, and the rows of each part."""
    domains = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    plain = folder / "data_full.json"
    if plain.is_file():
        return domains, json.loads(plain.read_text(encoding="utf-8"))
    with gzip.open(folder / "data_full.json.gz", "rt", encoding="utf-8") as file:
        return domains, json.load(file)


def write_files(
    data: dict[str, list[list[str]]], intents: Sequence[str], most: int | None, folder: Path
) -> dict[str, Path]:
    """The rows of a domain as JSONL files, by part.

    Args:
        most: rows of an intent in each part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, name in PARTS.items():
        rows: dict[str, list[str]] = defaultdict(list)
        for text, intent in data[part]:
            if intent in intents and (most is None or len(rows[intent]) < most):
                rows[intent].append(text)
        lines = [
            json.dumps({"text": text, "label": intent}) + "\n"
            for intent in intents
            for text in rows[intent]
        ]
        files[name] = folder / f"{name}.jsonl"
        write_whole(files[name], "".join(lines).encode())
    return files


def run_arm(
    name: str,
    folder: Path,
    task: Task[Any, Any, Any],
    model: Model,
    files: dict[str, dict[str, Path]],
    settings: dict[str, Any],
    context: int,
) -> Stages:
    """Train all stages of an arm, or those that are left."""
    table, store = RunTable(folder / "runs"), AdapterStore(folder / "adapters")
    known = {run.record.data[0].name: run for run in table.list()}
    last: Run | None = None
    for number, (domain, parts) in enumerate(files.items(), 1):
        run = known.get(domain)
        if run is None:
            data = [
                data_file(path, part, "labels", Source(), name=domain, licence="CC-BY-3.0")
                for part, path in parts.items()
            ]
            parent, given = None, dict(settings)
            if last is None:
                given.pop("replay")
                given.pop("ewc")
            else:
                parent = Parent.find(store, str(last.record.version), model)
                for setting in parent.settings():
                    given.pop(setting, None)
            run = begin(table, task, model, data, TrainingSettings.of(**given), parent=parent)
        if run.record.state != "done":
            print(f"{name}: stage {number} of {len(files)}, {domain}", flush=True)
            train(run, task, model, store, context=context, watch=Watch(update=_tell))
        last = run
    assert last is not None
    stages = Stages.load(last.folder)
    assert stages is not None
    return stages


def _tell(update: Update) -> None:
    if update.figures is not None:
        print(
            f"  step {update.step}/{update.steps}: loss {update.loss:.3f}, "
            f"accuracy {update.figures['accuracy']:.3f}, {update.tokens_per_s:.0f} tokens/s",
            flush=True,
        )


def told(name: str, stages: Stages, domains: Sequence[str]) -> str:
    """A table of an arm, in points."""
    head = "after stage".ljust(22) + "".join(f"{n:>6}" for n in range(1, len(domains) + 1))
    lines = [f"{name}: accuracy at each domain, in points", head]
    for domain, row in zip(domains, stages.matrix, strict=True):
        cells = ("" if value is None else f"{100 * value:.1f}" for value in row)
        lines.append(domain.ljust(22) + "".join(f"{cell:>6}" for cell in cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of CLINC150")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--model", help="by default the settings'")
    parser.add_argument(
        "--replay", type=float, nargs="+", default=[0.0, 0.1], help="shares; one arm each"
    )
    parser.add_argument("--ewc", type=float, default=0.0, help="in every arm")
    parser.add_argument("--domains", type=int, help="how many; all by default")
    parser.add_argument("--rows", type=int, help="of each intent and part; all by default")
    parser.add_argument("--keep", type=int, help="rows of the reservoir")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", choices=("lora", "head"), default="lora")
    parser.add_argument("--layers", choices=("all", "upper"), default="all")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--head-learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    folder, out, shares = given.pop("folder"), given.pop("out"), given.pop("replay")
    settings = load(**({"model": given["model"]} if given["model"] else {}))
    most, count = given.pop("rows"), given.pop("domains")
    given.pop("model")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    domains, data = read_domains(folder)
    chosen = list(domains)[:count]
    files = {name: write_files(data, domains[name], most, out / "data" / name) for name in chosen}
    task = make_task([intent for name in domains for intent in domains[name]])
    arms: dict[str, dict[str, Any]] = {}
    for share in shares:
        name = f"replay {share:.0%}" if share else "naive"
        arm_settings = {**given, "replay": share, "evaluations": 1}
        stages = run_arm(
            name,
            out / name.replace(" ", "-").replace("%", ""),
            task,
            model,
            files,
            arm_settings,
            settings.slot_tokens,
        )
        arms[name] = {"settings": arm_settings, **stages.as_dict()}
        text = json.dumps({"model": model.name, "domains": chosen, "arms": arms}, indent=1)
        write_whole(out / "results.json", (text + "\n").encode())
        print("\n" + told(name, stages, chosen), flush=True)
    print(f"{'':14}{'mean':>8}{'backward transfer':>20}{'forgetting':>12}")
    for name, arm in arms.items():
        figures = [arm["mean"], arm["backward_transfer"], arm["forgetting"]]
        cells = ["" if value is None else f"{100 * value:.1f}" for value in figures]
        print(f"{name:14}{cells[0]:>8}{cells[1]:>20}{cells[2]:>12}")


if __name__ == "__main__":
    main()
