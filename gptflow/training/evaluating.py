"""Evaluating: what a task answers to the rows of a file, beside simple models fitted meanwhile.

The task runs as a worker runs it, on the engine that workers have. What its trained head answered
is taken on the way, so that cleaning, features, templates and steps before it are those of serving.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gptflow.adapter import ClassifyHead, Manifest
from gptflow.concurrency import gather
from gptflow.context import Job, JobContext
from gptflow.errors import BadLabel, EmptyData, GPTFlowError, NotTrainable
from gptflow.heads import (
    Choices,
    Chosen,
    Classify,
    Head,
    MultiHead,
    Raw,
    Score,
    Scored,
    Tag,
    Tagged,
)
from gptflow.plugins import AnyTask
from gptflow.prompt import Prompt
from gptflow.request import Engine
from gptflow.result import Result
from gptflow.training.data.rows import LABEL, LabelledText, Row, ScoredPair, TaggedText
from gptflow.training.evaluation.answers import Answers
from gptflow.training.evaluation.floors import label_floors, tag_floors
from gptflow.training.evaluation.labels import Floats, LabelAnswers
from gptflow.training.evaluation.pairs import pair_floors, rank_pairs
from gptflow.training.evaluation.summary import Report
from gptflow.training.evaluation.tags import TagAnswers
from gptflow.training.report import report_labels, report_rankings, report_tags

HeadT = TypeVar("HeadT", bound=Head)

TOGETHER = 128
"""Rows that run side by side."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a task said to rows.

    Attributes:
        rows: what was asked.
        by_head: answers by the head's name; those of a head for which no row has a label are
            left out.
        temperatures: by head, that of its adapter; missing where none has been fitted.
        truncated: rows whose text was shortened to fit.
    """

    rows: Sequence[Any]
    by_head: Mapping[str, Answers]
    temperatures: Mapping[str, float]
    truncated: int


def ask(
    task: AnyTask,
    engine: Engine,
    rows: Sequence[Any],
    *,
    alias: str,
    out_of_scope: str | None = None,
) -> Asked:
    """Run a task on rows and take what its head `alias` answers.

    Args:
        task: set up already, if it needs to be.
        engine: with the adapter loaded under `alias`, or without one.
        out_of_scope: the label that stands for none of the others.

    Raises:
        NotTrainable: the task's head does not go with such rows, or it does not ask this head.
        BadLabel: a row has a label that the task does not know.
        GPTFlowError: a row cannot be answered; says which.
    """
    held = engine.adapters().get(alias)
    manifest = None if held is None else held.manifest
    first = rows[0]
    if isinstance(first, LabelledText):
        labels = _labels(task, alias, rows)
        inputs: list[Any] = [row.text for row in rows]
    elif isinstance(first, TaggedText):
        _require(task, Tag, "tags")
        inputs = [row.text for row in rows]
    elif isinstance(first, ScoredPair):
        each = _require(task, Score, "scores").each
        inputs = [{**task.input_type.from_text(row.query), each: [row.candidate]} for row in rows]
    else:
        raise NotTrainable(
            f"Rows of {type(first).__name__} have no simple models to be compared with.",
            hint="`gptflow train` tells the perplexity of dialogues when it is done.",
        )
    answers = asyncio.run(_run(task, engine, rows, inputs, alias))
    raws = [answer.raw for answer in answers]
    by_head: dict[str, Answers] = {}
    if isinstance(first, LabelledText):
        for name, own in labels.items():
            kept = [i for i, row in enumerate(rows) if name in row.labels]
            by_head[name] = LabelAnswers(
                rows=[rows[i] for i in kept],
                labels=own,
                probs=np.stack([_probs(raws[i], name, own) for i in kept]),
                head=name,
                out_of_scope=out_of_scope if out_of_scope in own else None,
            )
    elif isinstance(first, TaggedText):
        found = [raw.spans for raw in raws if isinstance(raw, Tagged)]
        spans = [[(s.start, s.end, s.label) for s in each] for each in found]
        by_head["tags"] = TagAnswers.from_spans(rows, spans)
    else:
        scores = [raw.values[0] for raw in raws if isinstance(raw, Scored)]
        by_head["score"] = rank_pairs(rows, scores)
    truncated = sum(answer.truncated for answer in answers)
    return Asked(rows, by_head, _temperatures(manifest, by_head), truncated)


def report(
    asked: Asked,
    *,
    train: Sequence[Any] = (),
    dev: Asked | None = None,
    seed: int = 0,
) -> dict[str, Report]:
    """Figures by head, beside their floors where there are training rows.

    Args:
        train: what the floors are fitted on. BM25 needs none.
        dev: answers that the temperature is fitted on, in place of the adapter's own.

    Raises:
        OneClass: the training rows have fewer than two labels.
    """
    made: dict[str, Report] = {}
    for name, answers in asked.by_head.items():
        if isinstance(answers, LabelAnswers):
            known = [row for row in train if name in row.labels]
            fitted = None if dev is None else dev.by_head.get(name)
            made[name] = report_labels(
                answers,
                title=name,
                dev=fitted if isinstance(fitted, LabelAnswers) else None,
                temperature=None if fitted is not None else asked.temperatures.get(name),
                floors=label_floors(
                    known,
                    list(answers.rows),
                    answers.labels,
                    head=name,
                    out_of_scope=answers.out_of_scope,
                )
                if known
                else {},
                train=train,
                seed=seed,
            )
        elif isinstance(answers, TagAnswers):
            floors = tag_floors(train, answers.rows) if train else {}
            made[name] = report_tags(answers, title=name, floors=floors, train=train, seed=seed)
        else:
            ranking: Any = answers
            made[name] = report_rankings(
                ranking, title=name, floors=pair_floors(asked.rows), seed=seed
            )
    return made


class _Answer(NamedTuple):
    raw: Raw
    truncated: bool


class _Spy(JobContext):
    """A job's context that keeps what the head with this adapter answers first."""

    def __init__(self, engine: Engine, job: Job, alias: str) -> None:
        super().__init__(engine, job, plugin="", map=_no_map)
        self._alias = alias
        self.answered: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()

    @property
    def truncated(self) -> bool:
        return self._truncated

    def is_trained(self, head: Head) -> bool:
        return True  # it is the head that is measured, not what answers in its place

    async def ask(
        self,
        head: Head,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
    ) -> Raw:
        raw = await super().ask(head, prompt, variables, stream=stream)
        if head.adapter == self._alias and not self.answered.done():
            self.answered.set_result(raw)
        return raw

    async def score(
        self,
        prompt: Prompt,
        variables: Mapping[str, Any],
        items: Sequence[Any],
        *,
        baseline: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Scored:
        raw = await super().score(prompt, variables, items, baseline=baseline, **options)
        if options.get("adapter") == self._alias and not self.answered.done():
            self.answered.set_result(raw)
        return raw


async def _run(
    task: AnyTask, engine: Engine, rows: Sequence[Row], inputs: Sequence[Any], alias: str
) -> list[_Answer]:
    async def one(row: Row, value: Any) -> _Answer:
        spy = _Spy(engine, Job(id=str(row.origin), task=task.name, input=value), alias)
        try:
            running = asyncio.ensure_future(task.run(task.parse(value), spy))
            try:
                await asyncio.wait({running, spy.answered}, return_when=asyncio.FIRST_COMPLETED)
                if spy.answered.done():  # what the task makes of it is not measured
                    return _Answer(spy.answered.result(), spy.truncated)
                await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        except GPTFlowError as error:
            raise type(error)(f"{row.origin}: {error.message}", hint=error.hint) from None
        raise NotTrainable(
            f"{row.origin}: task {task.name!r} did not ask the head of its adapter {alias!r}."
        )

    found: list[_Answer] = []
    for start in range(0, len(inputs), TOGETHER):
        part = slice(start, start + TOGETHER)
        found += await gather(*map(one, rows[part], inputs[part]))
    return found


async def _no_map(job: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
    raise NotTrainable(f"Task {job.task!r} runs {task!r}, which an evaluation does not.")


def _labels(task: AnyTask, alias: str, rows: Sequence[LabelledText]) -> dict[str, tuple[str, ...]]:
    """The labels of each head that any row has one for.

    Raises:
        BadLabel: a label is none of its head's, or is for a head that the task does not have.
        EmptyData: no row has a label for any head.
        NotTrainable: the task's head gives no labels.
    """
    head = task.head
    if isinstance(head, MultiHead):
        own = [each for each in head.heads.values() if each.adapter == alias]
        known = (
            {LABEL: own[0].labels} if own else {n: each.labels for n, each in head.heads.items()}
        )
    elif isinstance(head, Classify):
        known = {LABEL: head.labels}
    else:
        raise _unfit(task, "labels")
    for row in rows:
        for name, label in row.labels.items():
            if label not in known.get(name, ()):
                raise BadLabel(
                    f"{row.origin}: task {task.name!r} does not know the label {label!r}"
                    + (f" of a head {name!r}." if len(known) > 1 or name not in known else "."),
                    hint="Call it by the task's name: `--rename 0=NAME`, `--label HEAD=FIELD`.",
                )
    found = {n: own for n, own in known.items() if any(n in row.labels for row in rows)}
    if not found:
        raise EmptyData(
            "No row has a label.", hint="Name the column of the labels: `--label COLUMN`."
        )
    return found


def _require(task: AnyTask, kind: type[HeadT], rows: str) -> HeadT:
    if not isinstance(task.head, kind):
        raise _unfit(task, rows)
    return task.head


def _unfit(task: AnyTask, rows: str) -> NotTrainable:
    return NotTrainable(
        f"The {type(task.head).__name__} head of task {task.name!r} is not measured with {rows}.",
        hint="`--kind` says what a file holds.",
    )


def _probs(raw: Raw, head: str, labels: Sequence[str]) -> Floats:
    """`[labels]` at temperature 1: an adapter's logits, or likelihoods of the base model."""
    chosen = raw[head] if isinstance(raw, Choices) else raw
    assert isinstance(chosen, Chosen)
    logits = np.array([chosen.scores[label] for label in labels], dtype=np.float64)
    odds = np.exp(logits - logits.max())
    probs: Floats = odds / odds.sum()
    return probs


def _temperatures(manifest: Manifest | None, heads: Iterable[str]) -> dict[str, float]:
    if manifest is None:
        return {}
    fitted = {
        name: manifest.floors[name].temperature if name in manifest.replaced else spec.temperature
        for name, spec in manifest.heads.items()
        if isinstance(spec, ClassifyHead)
    }
    if len(fitted) == 1:  # it may have any name
        [only] = fitted.values()
        return dict.fromkeys(heads, only)
    return fitted
