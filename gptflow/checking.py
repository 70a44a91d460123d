"""Checking: what `gptflow plugins check` finds wrong with a plugin.

Tasks run on the scripted engine and with an empty data folder, so nothing of theirs changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from gptflow.config import ENV_PREFIX
from gptflow.errors import GPTFlowError, PluginNotFound
from gptflow.plugins import AnyTask, PluginInfo, Registry
from gptflow.suggestion import did_you_mean
from gptflow.testing import TaskContract, registry_of, run_result

Severity = Literal["error", "warning"]

# A test that these repeat line by line.
_EXAMPLES = "test_every_example_gives_an_output"
# A task may mean these, such as one that keeps a state; its own tests say so, unseen from here.
_DEBATABLE = {
    "test_blank_text_is_refused_without_asking_the_model",
    "test_the_same_input_gives_the_same_output",
    "test_neighbours_do_not_matter",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: an `error` breaks a promise of the plugin contract; a `warning` may be meant.
        location: `file:line`, or the module.
    """

    plugin: str
    severity: Severity
    message: str
    location: str

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def check_plugin(registry: Registry, name: str) -> list[Finding]:
    """Check that a plugin loads, keeps the contract and documents itself, without a model.

    Returns:
        What is wrong, the gravest first; nothing if all is well.

    Raises:
        PluginNotFound: there is no plugin of this name.
    """
    info = registry.plugins.get(name)
    if info is None:
        raise PluginNotFound(
            f"No plugin {name!r} is installed.",
            hint=did_you_mean(name, registry.plugins) or "`gptflow plugins list` shows them.",
        )
    if info.error is not None:
        return [
            Finding(plugin=name, severity="error", message=str(info.error), location=info.module)
        ]
    with _empty_data_folder():
        found = [
            Finding(plugin=name, severity=severity, message=message, location=location)
            for severity, message, location in _problems(registry, info)
        ]
    return sorted(found, key=lambda finding: finding.severity)


@contextlib.contextmanager
def _empty_data_folder() -> Iterator[None]:
    name = f"{ENV_PREFIX}DATA_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="gptflow-check-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


_Problem = tuple[Severity, str, str]


def _problems(registry: Registry, info: PluginInfo) -> Iterator[_Problem]:
    if not info.hooks:
        yield "warning", "It implements no hook: is a `@hookimpl` missing?", info.module
    if info.distribution and not _describes_itself(info.distribution):
        yield "warning", f"{info.distribution} has no README.", info.module
    for name in info.tasks:
        task = registry.task(name)
        # Feeds may be read; nobody is told of an alert that an example raises.
        alone = registry_of(task)
        alone.sources |= registry.sources
        yield from _check_contract(task, alone)
        yield from _check_examples(task, alone)
    for schedule in registry.schedules.values():
        if schedule.plugin == info.name:
            try:
                registry.check_schedule(schedule)
            except GPTFlowError as error:
                yield "error", str(error), info.module


def _describes_itself(distribution: str) -> bool:
    metadata = importlib.metadata.metadata(distribution).json
    return bool(str(metadata.get("description", "")).strip())


def _check_contract(task: AnyTask, registry: Registry) -> Iterator[_Problem]:
    contract = type("Contract", (TaskContract,), {"task": task, "registry": registry})()
    for test in dir(TaskContract):
        if not test.startswith("test_") or test == _EXAMPLES:
            continue
        try:
            getattr(contract, test)()
        except Exception as error:  # noqa: BLE001  a plugin may raise anything
            reason = "".join(f": {line}" for line in str(error).splitlines()[:1]).rstrip(".")
            claim = test.removeprefix("test_").replace("_", " ")
            severity: Severity = "warning" if test in _DEBATABLE else "error"
            yield severity, f"Task {task.name}: not so: {claim}{reason}.", task.location


def _check_examples(task: AnyTask, registry: Registry) -> Iterator[_Problem]:
    path = Path(task.directory) / task.examples
    if not path.is_file():
        yield "error", f"Task {task.name} has no examples.", str(path)
        return
    rows = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            mine = row.get("task", task.name) == task.name
        except (ValueError, AttributeError):
            yield "error", "An example is not a JSON object.", where
            continue
        if mine:
            rows += 1
            yield from _check_example(task, registry, row, where)
    if not rows:
        yield "error", f"Task {task.name} has no examples.", str(path)


def _check_example(
    task: AnyTask, registry: Registry, row: dict[str, Any], where: str
) -> Iterator[_Problem]:
    if "input" not in row:
        yield "error", "An example has no `input`.", where
        return
    result = run_result(task, row["input"], registry=registry)
    if result.error is not None:
        yield "error", f"Task {task.name} fails on an example: {result.error.message}", where
