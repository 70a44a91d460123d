"""`gptflow doctor`: find out what is wrong with an installation."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import click

from gptflow.cli.session import Session, json_option, print_json, print_table
from gptflow.config import DEFAULT_MODEL, Settings
from gptflow.errors import GPTFlowError

Status = Literal["ok", "warning", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    status: Status
    detail: str
    hint: str | None = None


@click.command(short_help="Find out what is wrong with an installation.")
@json_option
@click.pass_obj
def doctor(session: Session, as_json: bool) -> int:
    """Look at versions, packages, plugins, model, Redis and workers. Exit code 1 on errors."""
    settings = session.settings()
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": lambda: _packages(settings),
        "plugins": lambda: _plugins(session, settings),
        "schedules": lambda: _schedules(session, settings),
        "model": lambda: _model(settings),
        "redis": lambda: _redis(settings),
    }
    findings = [finding for name, check in checks.items() for finding in _guarded(name, check)]
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        columns = ("check", "status", "detail", "hint")
        print_table(columns, ([getattr(f, c) for c in columns] for f in findings))
    return 1 if any(finding.status == "error" for finding in findings) else 0


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except GPTFlowError as error:
        yield Finding(name, "error", error.message, error.hint)


def _packages(settings: Settings) -> Iterator[Finding]:
    yield Finding("python", "ok", sys.version.split()[0])
    for name in ("gptflow", "celery", "redis", "pluggy", "click"):
        yield Finding(f"package {name}", "ok", importlib.metadata.version(name))
    remote = settings.engine == "openai"
    needed = ("httpx2", "jsonschema") if remote else ("torch", "transformers", "llguidance")
    for name in needed:
        try:
            yield Finding(f"package {name}", "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                f"package {name}",
                "warning",
                "not installed: this machine can enqueue, but not run a worker",
                f"pip install 'gptflow[{'openai' if remote else 'runtime'}]'",
            )
    names = Counter(
        dist.name.lower().replace("_", "-")
        for dist in importlib.metadata.distributions()
        if dist.name
    )
    for name, count in names.items():
        if count > 1 and name.startswith("gptflow"):
            yield Finding(
                f"package {name}",
                "error",
                f"installed {count} times",
                f"pip uninstall {name}, then install",
            )


def _plugins(session: Session, settings: Settings) -> Iterator[Finding]:
    for info in session.registry(settings).plugins.values():
        if info.error is None:
            yield Finding(f"plugin {info.name}", "ok", ", ".join(info.tasks) or "no tasks")
        else:
            yield Finding(f"plugin {info.name}", "error", info.error.message, info.error.hint)


def _schedules(session: Session, settings: Settings) -> Iterator[Finding]:
    registry = session.registry(settings)
    for schedule in registry.schedules.values():
        check = f"schedule {schedule.name}"
        try:
            registry.check_schedule(schedule)
        except GPTFlowError as error:
            yield Finding(check, "error", error.message, error.hint)
        else:
            yield Finding(check, "ok", f"{schedule.task}, {schedule.when}")


def _model(settings: Settings) -> Iterator[Finding]:
    from gptflow.models import ModelStore
    from gptflow.queue.engine_factory import is_scripted

    if is_scripted(settings.model):
        yield Finding(
            "model", "warning", "scripted: no model answers", f"GPTFLOW_MODEL={DEFAULT_MODEL}"
        )
        return
    if settings.engine == "openai":
        yield from _model_server(settings)
        return
    model = ModelStore(settings.cache_dir, offline=True).find(settings.model)
    yield Finding("model", "ok", f"{model.name}, {model.size_bytes / 1e6:.0f} MB, {model.source}")


def _model_server(settings: Settings) -> Iterator[Finding]:
    from gptflow.queue.engine_factory import load_engine

    engine = load_engine(settings.model_copy(update={"openai_wait": 0.0}))
    try:
        can = dict(engine.stats()["capabilities"])
        server = can.pop("server")
        context = engine.model.context
        yield Finding("model", "ok", f"{engine.model.id} on {server}, {context} tokens")
        lacks = sorted(name for name, value in can.items() if not value and name != "adapters")
        yield Finding(
            "model server",
            "warning" if lacks else "ok",
            f"it does not do: {', '.join(lacks)}" if lacks else "it does everything",
            "docs/openai-engine.md says which head needs what" if lacks else None,
        )
    finally:
        engine.close()


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.broker_url is None:
        yield Finding("redis", "warning", "none is configured", "gptflow up")
        return
    if settings.broker_url == "memory://":
        yield Finding("redis", "warning", "memory:// is one process's own", "gptflow up")
        return
    from gptflow.queue.health import APPEND_ONLY, NO_EVICTION, inspect_server

    server = inspect_server(settings)
    yield Finding("redis", "ok", f"{server.description}, {server.round_trip_ms:.1f} ms")
    if server.eviction != "noeviction":
        yield Finding(
            "redis eviction",
            "error",
            f"maxmemory-policy is {server.eviction}: jobs can vanish",
            NO_EVICTION,
        )
    if not server.append_only:
        yield Finding(
            "redis persistence",
            "warning",
            "appendonly is off: a restart loses what is queued",
            APPEND_ONLY,
        )
    skew = abs(server.time - time.time())
    if skew > 2:
        yield Finding("clock", "warning", f"{skew:.1f} s apart from Redis", "run NTP on both")
    from gptflow.cli.queue import look

    seen = look(settings)
    yield Finding("queue", "ok", f"{seen.waiting:,} items wait, {seen.running:,} run")
    if seen.dead:
        yield Finding("dead jobs", "warning", f"{seen.dead:,} are kept", "gptflow dead list")
    if not seen.workers:
        yield Finding("workers", "warning", "none is running", "gptflow worker")
    for worker in seen.workers:
        yield Finding(
            f"worker {worker.name}", "ok", f"{worker.model}, {worker.in_flight} in flight"
        )
