"""Gates: figures of the shipped adapters, as they are served, and what they have to reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptflow.config import Settings
from gptflow.engine import load
from gptflow.engine.engine import TorchEngine
from gptflow.executor import Executor
from gptflow.models import ModelStore
from gptflow.plugins import Registry
from gptflow.testing import ScriptedEngine
from gptflow.training import evaluating
from gptflow.training.data.reading import read
from gptflow.training.data.repeats import leave_out_repeats
from gptflow.training.data.source import Source
from gptflow.training.evaluation.summary import Report
from shipped.recipe import Recipe, Rows

Tell = Callable[[str], None]

_LESS_IS_BETTER = ("ece",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A figure and what it has to reach.

    Attributes:
        floor: what the best simple model reaches, fitted in the same run.
    """

    name: str
    seen: float
    asked: float
    floor: float | None = None

    @property
    def held(self) -> bool:
        """Whether it does."""
        if self.name.rpartition(".")[2] in _LESS_IS_BETTER:
            return self.seen <= self.asked
        return self.seen >= self.asked


def serve(recipe: Recipe) -> tuple[Any, TorchEngine]:
    """The task, set up, and an engine that has the shipped adapter.

    Raises:
        GPTFlowError: the model or the adapter cannot be loaded.
    """
    settings = Settings()
    model = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    registry = Registry.load()
    task = registry.task(recipe.task)
    Executor(ScriptedEngine(), registry, settings=settings).setup([task.name])
    engine = load(model.path, model_id=model.name, sha256=model.sha256)
    engine.load_adapter(recipe.alias, recipe.home)
    return task, engine


def judge(recipe: Recipe, data: Path, build: Path, tell: Tell) -> list[Gate]:
    """Measure a shipped adapter on its test files, beside simple models.

    Args:
        data: the folder of the data sets.
        build: a folder for rows and reports.
    """
    files = recipe.prepare(data, build / "rows" / recipe.alias)
    test, train = _rows(files, recipe, "test"), _rows(files, recipe, "train")
    train = list(leave_out_repeats(train, test).rows)
    task, engine = serve(recipe)
    try:
        tell(f"{recipe.alias}: asking about {len(test)} rows")
        asked = evaluating.ask(task, engine, test, alias=recipe.alias)
    finally:
        engine.close()
    tell(f"{recipe.alias}: fitting simple models on {len(train)} rows")
    reports = evaluating.report(asked, train=train)
    for name, report in reports.items():
        report.write(build / "gates" / recipe.alias / name)
    return list(_gates(recipe, reports))


def _rows(files: Any, recipe: Recipe, split: str) -> list[Any]:
    found: list[Any] = []
    for file in files:
        assert isinstance(file, Rows)
        if file.split == split:
            found += read(file.path, recipe.kind, Source(labels=dict(file.labels))).require()
    return found


def _gates(recipe: Recipe, reports: dict[str, Report]) -> Iterator[Gate]:
    for name, asked in recipe.gates.items():
        head, _, figure = name.rpartition(".")
        report = reports[head] if head else next(iter(reports.values()))
        best = report.floors.get(report.best_floor or "", {})
        yield Gate(
            name=f"{recipe.alias}.{name}",
            seen=report.value(figure),
            asked=asked,
            floor=best[figure].value if figure in best else None,
        )
