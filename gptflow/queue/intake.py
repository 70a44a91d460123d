"""Intake: what a Celery message may say, checked before Celery acts on it.

Whoever can write to a queue could have Celery run any task that is registered, and any after it.
So only tasks of a list are run; of `gptflow.run`, the arguments count and nothing else. Callbacks,
errbacks, chains and chords that are embedded in a message are dropped; a chain of GPTFlow's own
jobs is kept where the setting allows it, as part of the envelope, so that the ledger carries it.
A time before which a job must not run goes into the envelope, too: Celery would keep the job in
this worker's memory, and lose it there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import InvalidTaskError

from gptflow.config import Settings
from gptflow.errors import InvalidInput
from gptflow.queue.backend import job_id_of
from gptflow.queue.message import TASK
from gptflow.queue.signing import SETTING

logger = logging.getLogger(__name__)

_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")

Strategy = Callable[..., Any]


def allowed(names: Iterable[str], settings: Settings) -> list[str]:
    """The Celery tasks that a worker of these settings runs, of those that are registered."""
    return [name for name in names if name == TASK or name in settings.celery_tasks]


def guarded(strategy: Strategy, settings: Settings) -> Strategy:
    """Celery's way of handling a message of `gptflow.run`, behind the checks."""

    def handle(message: Any, payload: Any, *more: Any) -> Any:
        clean(message, payload, settings)
        return strategy(message, payload, *more)

    return handle


def clean(message: Any, payload: Any, settings: Settings) -> None:
    """Take everything out of a message that it may not say.

    Args:
        payload: what a message of Celery's first protocol says; None for one of the second.

    Raises:
        InvalidTaskError: it is no message of `gptflow.run`.
    """
    if payload is not None:
        raise InvalidTaskError("it is of Celery's first protocol")
    # kombu keeps what it decoded, and Celery takes it from there.
    body = message.payload
    if not isinstance(body, list) or len(body) != 3:
        raise InvalidTaskError("its body is not that of a task")
    args, kwargs, embed = body
    if not isinstance(args, list) or not 1 <= len(args) <= 2 or kwargs:
        raise InvalidTaskError("it has other arguments than an envelope and a signature")
    if not isinstance(embed, Mapping | None):
        raise InvalidTaskError("its body is not that of a task")
    headers = message.headers
    said = {name: headers.pop(name, None) or (embed or {}).get(name) for name in _EMBEDDED}
    eta, expires = headers.pop("eta", None), headers.pop("expires", None)
    extras = {name: value for name, value in said.items() if value}
    if not extras and not embed and not eta and not expires:
        return
    if isinstance(args[0], dict):
        args[0] = dict(args[0])
        _set_time(args[0], "not_before", eta)
        _set_time(args[0], "deadline", expires)
    if extras:
        _keep(args[0], extras, str(headers.get("id")), settings)
    body = [args, {}, {}]
    message.body = json.dumps(body)
    message.content_encoding = "utf-8"
    message._decoded_cache = body


def _set_time(envelope: dict[str, Any], name: str, text: Any) -> None:
    """Celery's times are ISO 8601; those of an envelope itself go first."""
    if not text or envelope.get(name) is not None:
        return
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise InvalidTaskError(f"its {name} is not a time") from None
    envelope[name] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _keep(envelope: Any, extras: Mapping[str, Any], job_id: str, settings: Settings) -> None:
    """Move a chain of our own jobs into the envelope, where that is allowed."""
    try:
        steps = _steps(extras) if isinstance(envelope, dict) else None
    except (InvalidInput, TypeError, AttributeError):
        steps = None
    if settings.allow_chains and steps is not None and "then" not in envelope:
        envelope["then"] = steps
        return
    logger.warning(
        "The %s in the message of job %.80s %s ignored: %s.",
        " and ".join(extras),
        job_id,
        "is" if len(extras) == 1 else "are",
        "only chains of gptflow.run are kept" if settings.allow_chains else f"{SETTING} is off",
    )


def _steps(extras: Mapping[str, Any]) -> list[Any] | None:
    """A chain that Celery embedded, as an envelope has it; None where it is anything else."""
    links, chain = extras.get("callbacks") or [], extras.get("chain") or []
    if set(extras) - {"callbacks", "chain"} or len(links) + bool(chain) != 1:
        return None
    steps = []
    for signature in links or reversed(chain):
        if not isinstance(signature, Mapping) or signature.get("task") != TASK:
            return None
        args, options = signature.get("args"), signature.get("options") or {}
        known = {"task_id", "reply_to", "root_id", "parent_id"}
        if not args or not isinstance(args[0], Mapping) or set(options) - known:
            return None
        task_id = options.get("task_id")
        steps.append(dict(args[0]) | ({"id": job_id_of(str(task_id))} if task_id else {}))
    return steps
