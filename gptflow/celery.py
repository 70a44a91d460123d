"""GPTFlow's jobs for programs that use Celery: signatures, groups, chains and chords of them.

    from celery import chord, group
    from gptflow.celery import app, job

    result = job("sentiment.classify", {"text": "..."}).delay()
    result.get(timeout=30)
    group(job("text.summarize", text) for text in texts).delay().get()
    (job("text.summarize", text) | job("text.translate", {"to": "French"}, into="text")).delay()

Chains and chords need `signing_key`, or `allow_chains`, where jobs are sent and where they are run.
"""

from __future__ import annotations

import functools
import json
import uuid
from typing import Any

from celery.canvas import Signature
from pydantic_core import to_jsonable_python

from gptflow import config
from gptflow.config import Settings
from gptflow.queue.app import App, make_app
from gptflow.queue.message import TASK
from gptflow.request import JobClass

_KEYS = uuid.UUID("6d0f2a53-6f0b-4c12-9d7e-8f3a3f1f6a70")


def app(settings: Settings | None = None) -> App:
    """The Celery application of these settings; by default those that are found, made once.

    Raises:
        ConfigError: there is no Redis URL, or it is not one of a server.
    """
    return _default() if settings is None else make_app(settings)


@functools.cache
def _default() -> App:
    return make_app(config.load())


def job(
    task: str,
    input: Any = None,
    *,
    key: str | None = None,
    tenant: str | None = None,
    job_class: JobClass | None = None,
    seed: int | None = None,
    timeout: float | None = None,
    stream: bool = False,
    take: str | None = None,
    into: str | None = None,
    of: App | None = None,
) -> Signature[Any]:
    """A signature of a job: `.delay()` enqueues it, and so do Celery's groups, chains and chords.

    Args:
        task: its name, such as `sentiment.classify`.
        input: the task's input; in a chain, what there is of it beside the output of the job
            before, or nothing.
        key: the same key, for the same tenant and task, gives the same job.
        job_class: `interactive` jobs go first, `batch` jobs last.
        seed: of the random draws; by default derived from the job's id.
        timeout: seconds after which the answer is of no use.
        stream: publish the text as it is decoded.
        take: in a chain, the field of the output of the job before that is passed on; all of it
            by default. Dots lead into fields of fields; of the list that a group gives, each.
        into: in a chain, the field of the input that it goes into; it is the input by default.
        of: the application; by default that of the settings that are found.
    """
    values = {
        "task": task,
        "input": None if input is None else to_jsonable_python(input),
        "key": key,
        "tenant": tenant,
        "class": job_class,
        "seed": seed,
        "stream": stream or None,
        "take": take,
        "into": into,
    }
    options: dict[str, Any] = {} if timeout is None else {"expires": timeout}
    if key is not None:
        # Celery names a group's results before they are sent; this is the name of all of that key.
        name = json.dumps([tenant or "default", task, key])
        options["task_id"] = str(uuid.uuid5(_KEYS, name))
    spec = {name: value for name, value in values.items() if value is not None}
    return (of or app()).tasks[TASK].signature((spec,), options=options)
