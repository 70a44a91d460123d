from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gptflow import config
from gptflow.envelope import Envelope
from gptflow.hookspecs import hookimpl
from gptflow.plugins import Registry
from gptflow.queue.memory import MemoryTransport
from gptflow.task import Context, Input, Output, Task
from gptflow.testing import ScriptedEngine


class Number(Input):
    value: Any


class Value(Output):
    value: Any


class Echo(Task[Number, Any, Value]):
    """Give back the value."""

    name = "bed.echo"

    async def run(self, input: Number, ctx: Context) -> Value:
        if input.value == "bad":
            raise ValueError("a secret")
        if input.value == "exit":
            raise SystemExit(3)
        if input.value == "odd":
            ctx.warn(object())  # type: ignore[arg-type]
        return Value(value=input.value)


class Hang(Task[Number, Any, Value]):
    """Never end; say when it has begun and when it was cancelled."""

    name = "bed.hang"

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def run(self, input: Number, ctx: Context) -> Value:
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Value(value=None)


class Words(Task[Number, Any, Value]):
    """Stream three sentences, one after the other."""

    name = "bed.words"

    async def run(self, input: Number, ctx: Context) -> Value:
        texts = []
        for number in range(3):
            raw = await ctx.generate(f"part {number}", stream=True)
            texts.append(raw.text)
        return Value(value="".join(texts))


class Spread(Task[Number, Any, Value]):
    """Run `bed.echo` on as many numbers as the input says."""

    name = "bed.spread"

    async def run(self, input: Number, ctx: Context) -> Value:
        results = await ctx.map("bed.echo", [{"value": n} for n in range(input.value)])
        return Value(value=sum(result.unwrap()["value"] for result in results))


class Bed:
    """A plugin whose observers remember what they saw, and then raise."""

    def __init__(self) -> None:
        self.hang = Hang()
        self.finished: list[str] = []
        self.failed: list[tuple[str, str]] = []

    @hookimpl
    def register_tasks(self, register: Callable[[Any], None]) -> None:
        for task in (Echo(), self.hang, Words(), Spread()):
            register(task)

    @hookimpl
    def on_job_finished(self, envelope: Envelope, result: Any) -> None:
        self.finished.append(result.id)
        raise RuntimeError("an observer that raises")

    @hookimpl
    def on_job_failed(self, envelope: Envelope, error: Any) -> None:
        self.failed.append((envelope.id, error.code))


@pytest.fixture
def bed() -> Bed:
    return Bed()


@pytest.fixture
def make_transport(bed: Bed) -> Iterator[Callable[..., MemoryTransport]]:
    opened: list[MemoryTransport] = []

    def make(**settings: Any) -> MemoryTransport:
        registry = Registry()
        registry.register(bed, "bed")
        engine = ScriptedEngine(generate=lambda text: f"<{text}> ")
        loaded = config.load(redis_url="memory://", **settings)
        opened.append(MemoryTransport(loaded, engine=engine, registry=registry))
        return opened[-1]

    yield make
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(make_transport: Callable[..., MemoryTransport]) -> MemoryTransport:
    return make_transport()
