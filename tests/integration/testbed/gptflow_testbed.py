"""A plugin for testing a real worker with: tasks that wait, stream, map, break."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from gptflow.errors import StepFailed
from gptflow.heads import Classify
from gptflow.hookspecs import hookimpl
from gptflow.prompt import Prompt
from gptflow.task import Context, Input, Output, Task


class Value(Input):
    value: Any


class Answer(Output):
    value: Any


class Echo(Task[Value, Any, Answer]):
    """Give back the value."""

    name = "bed.echo"

    async def run(self, input: Value, ctx: Context) -> Answer:
        if input.value == "bad":
            raise ValueError("the value is bad")
        if input.value == "exit":
            raise SystemExit(3)
        return Answer(value=input.value)


class Swell(Task[Value, Any, Answer]):
    """Give back that many megabytes."""

    name = "bed.swell"

    async def run(self, input: Value, ctx: Context) -> Answer:
        return Answer(value="x" * (input.value << 20))


class Sleep(Task[Value, Any, Answer]):
    """Wait for some seconds."""

    name = "bed.sleep"

    async def run(self, input: Value, ctx: Context) -> Answer:
        try:
            await asyncio.sleep(input.value)
        except asyncio.CancelledError:
            _note(f"cancelled {ctx.job_id}")
            raise
        return Answer(value=input.value)


class Gate(Task[Value, Any, Answer]):
    """Wait for a file to appear."""

    name = "bed.gate"

    async def run(self, input: Value, ctx: Context) -> Answer:
        while not Path(input.value).exists():
            await asyncio.sleep(0.02)
        return Answer(value="open")


class Words(Task[Value, Any, Answer]):
    """Stream a few pieces of text, some time apart."""

    name = "bed.words"

    async def run(self, input: Value, ctx: Context) -> Answer:
        texts = []
        for number in range(input.value):
            texts.append((await ctx.generate(f"part {number}", stream=True)).text)
            await asyncio.sleep(0.08)
        return Answer(value="".join(texts))


class Spread(Task[Value, Any, Answer]):
    """Add up numbers by way of another task."""

    name = "bed.spread"

    async def run(self, input: Value, ctx: Context) -> Answer:
        results = await ctx.map("bed.echo", [{"value": n} for n in range(input.value)])
        return Answer(value=sum(result.unwrap()["value"] for result in results))


class Wreck(Task[Value, Any, Answer]):
    """Stop the worker's engine for good, as a crash does."""

    name = "bed.wreck"

    async def run(self, input: Value, ctx: Context) -> Answer:
        ctx._engine.close()
        return Answer(value=None)


class Hang(Task[Value, Any, Answer]):
    """Ask an engine that never answers any more; a second time, just answer."""

    name = "bed.hang"

    async def run(self, input: Value, ctx: Context) -> Answer:
        if Path(input.value).exists():
            return Answer(value="went on")
        Path(input.value).touch()
        # The engine's thread, in the middle of a step, as in a library that hangs.
        ctx._engine._runner.forward = lambda _chunks: threading.Event().wait()
        await ctx.generate("Hello")
        raise AssertionError("the engine moved")


class Flaky(Task[Value, Any, Answer]):
    """Fail with an error that may pass, as often as the value says."""

    name = "bed.flaky"

    def __init__(self) -> None:
        self.failures: collections.Counter[str] = collections.Counter()

    async def run(self, input: Value, ctx: Context) -> Answer:
        failed = self.failures[ctx.job_id]
        if failed < input.value:
            self.failures[ctx.job_id] += 1
            raise StepFailed("The model stumbled.")
        return Answer(value=f"attempt {failed + 1}")


class Mood(Task[Value, Any, Answer]):
    """Ask a trained head three times, some time apart, and say who answered."""

    name = "bed.mood"
    prompt = Prompt("Text: {{ value }}")
    head = Classify(labels=("good", "bad"), adapter="mood")

    async def run(self, input: Value, ctx: Context) -> Answer:
        found = []
        for number in range(3):
            raw: Any = await ctx.ask(self.head, self.prompt, {"value": f"{input.value} {number}"})
            found.append([raw.label, raw.adapter])
            await asyncio.sleep(0.03)
        return Answer(value=found)


class Poison(Task[Value, Any, Answer]):
    """Kill the process that runs it."""

    name = "bed.poison"

    async def run(self, input: Value, ctx: Context) -> Answer:
        if input.value == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.5)
        return Answer(value=input.value)


def _note(line: str) -> None:
    with open(os.environ["TESTBED_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(line + "\n")


@hookimpl
def register_tasks(register: Any) -> None:
    for task in (Echo, Swell, Sleep, Gate, Words, Spread, Wreck, Hang, Flaky, Mood, Poison):
        register(task())


@hookimpl
def register_schedules(register: Any) -> None:
    given = json.loads(os.environ.get("TESTBED_SCHEDULES", '{"tick": {"cron": "* * * * *"}}'))
    for name, options in given.items():
        register(name, **{"task": "bed.echo", "input": {"value": name}} | options)


@hookimpl
def on_job_finished(envelope: Any, result: Any) -> None:
    if envelope.task == "bed.echo" and envelope.input == {"value": "observed"}:
        _note(f"finished {result.id}")
        raise RuntimeError("an observer that raises")
