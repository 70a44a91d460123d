"""A plugin to break workers with: work on the token clock, and a job that kills its process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from gptflow.hookspecs import hookimpl
from gptflow.task import Context, Input, Output, Task

_notes: list[int] = []


class Load(Input):
    number: int = 0
    tokens: int = 1
    filler: str = ""


class Answer(Output):
    number: int
    text: str
    pid: int


class Work(Task[Load, Any, Answer]):
    """Decode some tokens. The text tells the process that decoded it."""

    name = "faults.work"

    async def run(self, input: Load, ctx: Context) -> Answer:
        note("start", ctx.job_id)
        try:
            prompt = f"{input.number} in {os.getpid()}"
            raw = await ctx.generate(prompt, max_tokens=input.tokens, stream=True)
        except asyncio.CancelledError:
            note("stop", ctx.job_id)
            raise
        note("end", ctx.job_id)
        return Answer(number=input.number, text=raw.text, pid=os.getpid())


class Poison(Task[Load, Any, Answer]):
    """Work; where the number is negative, kill the process."""

    name = "faults.poison"

    async def run(self, input: Load, ctx: Context) -> Answer:
        note("start", ctx.job_id)
        if input.number < 0:
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        await ctx.generate(str(input.number), max_tokens=input.tokens)
        note("end", ctx.job_id)
        return Answer(number=input.number, text="", pid=os.getpid())


def note(kind: str, job_id: str) -> None:
    if not _notes:
        _notes.append(os.open(os.environ["FAULTS_NOTES"], os.O_WRONLY | os.O_APPEND))
    # One short write at the end of the file: no two of them mix, and none is lost with us.
    os.write(_notes[0], f"{kind} {job_id} {os.getpid()} {time.time():.6f}\n".encode())


@hookimpl
def register_tasks(register: Any) -> None:
    for task in (Work, Poison):
        register(task())


@hookimpl
def register_schedules(register: Any) -> None:
    register("tick", task="faults.work", every=1.0, policy="skip", input={"number": 1})
