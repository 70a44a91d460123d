"""Canvas: Celery's signatures, groups, chains and chords as envelopes.

What follows a job travels in its envelope (`then`), and what gathers a group in each of its jobs
(`join`), so that the ledger carries the whole of it: see `gptflow.queue.follow`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from celery.canvas import maybe_signature

from gptflow.envelope import Envelope, Join, Step
from gptflow.errors import InvalidInput
from gptflow.queue.backend import CHORD_SIZE, job_id_of
from gptflow.queue.follow import fill
from gptflow.queue.keys import CLASSES, queue_name
from gptflow.queue.message import TASK
from gptflow.request import JobClass

_CLASSES: dict[str, JobClass] = {queue_name(name): name for name in CLASSES}

# What Celery says about where a message goes and comes from; a record needs none of it.
_OF_NO_USE = frozenset(
    {
        *("add_to_parent", "argsrepr", "connection", "group_id", "group_index", "headers"),
        *("ignore_result", "kwargsrepr", "parent_id", "publisher", "replaced_task_nesting"),
        *("reply_to", "result_cls", "retries", "retry", "retry_policy", "root_id", "router"),
        *("stamped_headers", "stamps", "task_id"),
    }
)
_KNOWN = _OF_NO_USE | {
    *("link", "link_error", "chain", "chord", "queue", "routing_key", "serializer"),
    *("countdown", "eta", "expires", "time_limit", "soft_time_limit"),
}
_OF_STEPS = frozenset(("take", "into"))


def to_envelope(args: Sequence[Any], options: Mapping[str, Any]) -> Envelope:
    """The envelope of a call of `gptflow.run`.

    Args:
        args: what the job is, as a mapping or an `Envelope`; before it the output of another
            job, where the input is to be made of one.
        options: Celery's.

    Raises:
        InvalidInput: something of it cannot be kept on the ledger, or does not fit.
    """
    spec, given = _read(args)
    options = {name: value for name, value in options.items() if value is not None}
    then, join = _following(options)
    times = _times(options)
    if given:
        names = ("task", "input", "take", "into")
        step = _checked({name: spec[name] for name in names if name in spec})
        spec = {**spec, "input": fill(step, given[0])}
    elif _OF_STEPS & set(spec):
        _refuse("there is no output of another job to make the input of")
    job_id = _id(spec, options)
    fields = {name: value for name, value in spec.items() if name not in _OF_STEPS}
    fields |= times | ({"id": job_id} if job_id else {})
    if (job_class := _class(options)) is not None:
        fields["class"] = job_class
    return Envelope.of(**fields, then=then, join=join)


def to_steps(signature: Any) -> Iterator[Step]:
    """A signature that follows another, as steps: one, or those of a chain.

    Raises:
        InvalidInput: it is or has something that cannot be kept on the ledger.
    """
    signature = _signature(signature)
    if (kind := signature.get("subtask_type")) == "chain":
        for task in signature.tasks:
            yield from to_steps(task)
        return
    if kind is not None:
        _refuse(f"a {kind} cannot come after a job", "A group can only come first.")
    if signature["task"] != TASK:
        _refuse(f"the Celery task {signature['task']!r} cannot come after a job")
    spec, given = _read(signature["args"])
    if given or signature["immutable"]:
        _refuse("a job that comes after another takes its input from that")
    options = {name: value for name, value in signature["options"].items() if value is not None}
    for name in ("key", "tenant", "not_before", "deadline"):
        if name in spec:
            _refuse(f"only the first job of a chain has a {name}")
    then, join = _following(options)
    fields = spec | _spans(options)
    if job_id := _id(spec, options):
        fields["id"] = job_id
    if (job_class := _class(options)) is not None:
        fields["class"] = job_class
    yield _checked(fields | ({"join": join} if join else {}))
    yield from then


def _read(args: Sequence[Any]) -> tuple[dict[str, Any], Sequence[Any]]:
    """What the job is, and the arguments before it."""
    if not args or len(args) > 2:
        _refuse("gptflow.run takes one envelope", "gptflow.celery.job(...) makes one.")
    *given, spec = args
    if isinstance(spec, Envelope):
        spec = spec.to_wire()
    if not isinstance(spec, Mapping):
        _refuse("gptflow.run takes an envelope", "gptflow.celery.job(...) makes one.")
    return dict(spec), given


def _following(options: Mapping[str, Any]) -> tuple[tuple[Step, ...], Join | None]:
    """What comes after a job by Celery's options, and the group that it is part of."""
    if options.get("link_error"):
        _refuse("link_error cannot be kept on the ledger", "Look at the result's state.")
    links = options.get("link") or []
    links = list(links) if isinstance(links, list | tuple) else [links]
    chain = list(options.get("chain") or [])
    chord = options.get("chord")
    if len(links) + bool(chain) + bool(chord) > 1:
        _refuse("only one job can come after another", "Use a group, or a chain.")
    following = links or chain[::-1]
    join = None
    if chord is not None:
        size, group = chord.get(CHORD_SIZE), options.get("group_id")
        if not size or group is None:
            _refuse("the chord has no size", "Celery's chord(...) gives it one.")
        join = Join(group=group, index=options.get("group_index") or 0, size=size)
        following = [chord]
    return tuple(step for signature in following for step in to_steps(signature)), join


def _signature(value: Any) -> Any:
    """Celery's object for what may be a mapping already."""
    return maybe_signature(value)


def _id(spec: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    own, task_id = spec.get("id"), options.get("task_id")
    if own is not None and task_id is not None and own != job_id_of(task_id):
        _refuse("the envelope's id is not the task's")
    return own or (None if task_id is None else job_id_of(task_id))


def _class(options: Mapping[str, Any]) -> JobClass | None:
    queue = options.get("queue") or options.get("routing_key")
    if queue is None:
        return None
    name = queue if isinstance(queue, str) else queue.name
    if name not in _CLASSES:
        _refuse(f"there is no queue {name!r}", f"Use one of {', '.join(_CLASSES)}.")
    return _CLASSES[name]


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - _KNOWN):
        hint = "Jobs have classes: job_class=." if "priority" in unknown else None
        _refuse(f"Celery's option {unknown[0]!r} means nothing here", hint)
    if options.get("serializer", "json") != "json":
        _refuse("only JSON is sent")


def _times(options: Mapping[str, Any]) -> dict[str, float]:
    """When a job may run, and until when, by Celery's options. Nothing waits in a worker."""
    _check_options(options)
    now, times = time.time(), dict[str, float]()
    if "countdown" in options:
        times["not_before"] = now + float(options["countdown"])
    elif "eta" in options:
        times["not_before"] = _moment(options["eta"])
    ends = []
    if "expires" in options:
        expires = options["expires"]
        ends.append(now + expires if isinstance(expires, int | float) else _moment(expires))
    # From when it may run: the record knows no other start in advance.
    start = max(now, times.get("not_before", now))
    limits = ("time_limit", "soft_time_limit")
    ends += [start + float(options[name]) for name in limits if name in options]
    if ends:
        times["deadline"] = min(ends)
    return times


def _spans(options: Mapping[str, Any]) -> dict[str, float]:
    """As `_times`, for a job whose turn comes at a moment that nobody knows yet."""
    _check_options(options)
    if "eta" in options:
        _refuse("a job that comes after another has no eta", "Use countdown.")
    spans, ends = {}, []
    if "countdown" in options:
        spans["wait"] = float(options["countdown"])
    for name in ("expires", "time_limit", "soft_time_limit"):
        if name in options:
            if not isinstance(options[name], int | float):
                _refuse("a job that comes after another expires in seconds, not at a time")
            ends.append(float(options[name]))
    if ends:
        spans["timeout"] = min(ends)
    return spans


def _moment(value: Any) -> float:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        _refuse(f"{value!r} is not a time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _checked(fields: Mapping[str, Any]) -> Step:
    try:
        return Step.model_validate({k: v for k, v in fields.items() if k != "v"})
    except ValueError as error:
        raise InvalidInput(f"The job cannot come after another: {_told(error)}.") from None


def _told(error: ValueError) -> str:
    """What does not fit, without the value: it may be somebody's text."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return type(error).__name__
    first = problems()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


def _refuse(why: str, hint: str | None = None) -> NoReturn:
    raise InvalidInput(f"The job cannot be sent: {why}.", hint=hint)
