"""Making an adapter by its recipe. A training that was stopped goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from gptflow.config import Settings
from gptflow.executor import Executor
from gptflow.models import ModelStore
from gptflow.models.adapter_store import AdapterStore
from gptflow.models.model import Model
from gptflow.plugins import AnyTask, Registry
from gptflow.testing import ScriptedEngine
from gptflow.training.data.source import Source
from gptflow.training.parts import data_file
from gptflow.training.runs import DataFile, Run, RunTable
from gptflow.training.settings import TrainingSettings
from gptflow.training.sitting import Watch
from gptflow.training.trainer import Update
from gptflow.training.training import begin, train
from shipped.recipe import MOST, Recipe

Tell = Callable[[str], None]


def make(recipe: Recipe, data: Path, build: Path, tell: Tell) -> None:
    """Train an adapter and put it into its plugin.

    Args:
        data: the folder of the data sets.
        build: a folder for rows, runs and versions.

    Raises:
        GPTFlowError: it cannot be trained.
    """
    settings = Settings()
    model = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    registry = Registry.load()
    task = registry.task(recipe.task)
    Executor(ScriptedEngine(), registry, settings=settings).setup([task.name])
    files = [
        data_file(
            rows.path,
            rows.split,
            recipe.kind,
            Source(labels=dict(rows.labels)),
            name=rows.name,
            licence=rows.licence,
        )
        for rows in recipe.prepare(data, build / "rows" / recipe.alias)
    ]
    store = AdapterStore(build / "adapters")
    run = _run(RunTable(build / "runs"), recipe, task, model, files)
    if run.state != "done":
        tell(f"{recipe.alias}: run {run.folder.name}")
        train(run, task, model, store, context=settings.slot_tokens, watch=_watch(recipe, tell))
    version = store.find(str(run.record.version))
    size = sum(path.stat().st_size for path in version.folder.iterdir())
    if size > MOST:
        tell(f"{recipe.alias}: {size:,} bytes are more than {MOST:,}; it is left in {build}")
        return
    shutil.rmtree(recipe.home, ignore_errors=True)
    shutil.copytree(version.folder, recipe.home)
    tell(f"{recipe.alias}: {size:,} bytes in {recipe.home}")


def _run(
    table: RunTable, recipe: Recipe, task: AnyTask, model: Model, files: list[DataFile]
) -> Run:
    """The run of this recipe that there is already, or a new one."""
    settings = TrainingSettings.of(**recipe.settings)
    shas = [file.sha256 for file in files]
    for run in table.list():
        record = run.record
        same = record.task == task.name and record.settings == settings
        if same and record.model_sha256 == model.sha256 and shas == [f.sha256 for f in record.data]:
            return run
    return begin(
        table, task, model, files, settings, adapter=recipe.alias, gates=dict(recipe.gates)
    )


def _watch(recipe: Recipe, tell: Tell) -> Watch:
    told = 0

    def update(made: Update) -> None:
        if made.figures is not None or made.step % 50 == 0:
            shown = "".join(f", {name} {value:.4f}" for name, value in (made.figures or {}).items())
            tell(
                f"{recipe.alias}: step {made.step}/{made.steps}, loss {made.loss:.4f}, "
                f"{made.tokens_per_s:.0f} tokens/s{shown}"
            )

    def lower(done: int, total: int) -> None:
        nonlocal told
        if (twentieths := done * 20 // total) > told:
            told = twentieths
            tell(f"{recipe.alias}: lower layers, {done} of {total} tokens")

    return Watch(
        update=update, note=lambda message: tell(f"{recipe.alias}: {message}"), lower=lower
    )
