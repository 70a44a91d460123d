"""Sampling: several answers of a model to each prompt, and rows that others are trained on.

A discriminator is a `Score` head that learns people's answers from a model's, or answers that pass
a check from ones that do not; the best of n answers is the one that it gives most. Where answers
have values, the best and the worst of a prompt are a preference. (Text GANs lose to likelihood
training: Caccia et al. 2020, "Language GANs Falling Short". This is what is left of the idea.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from gptflow.context import Job, JobContext
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import (
    AdapterNotFound,
    ConfigError,
    EmptyData,
    GPTFlowError,
    InvalidInput,
    NotTrainable,
)
from gptflow.heads import Generate, Generated, Raw, Score, Scored
from gptflow.plugins import AnyTask
from gptflow.request import Engine, Request
from gptflow.result import Result
from gptflow.training.data.fields import TURNS
from gptflow.training.data.problem import Problem, error_for
from gptflow.training.data.reading import fields_of, read
from gptflow.training.data.records import from_jsonl
from gptflow.training.data.rows import Dialogue, Origin, Preference, ScoredPair, Turn
from gptflow.training.data.source import Source
from gptflow.training.objectives.dialogues import conversation
from gptflow.training.recording import TaskRecorder

TOGETHER = 16
"""Prompts that are answered, or judged, side by side."""

Check = Callable[[Mapping[str, Any], str], float]
"""How good an answer to a task's input is: more is better."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a task.

    Attributes:
        input: the task's.
        prompt: the text of it.
        before: turns of a conversation that the prompt comes after.
        human: what a person answered, where that is known.
        whole: the prompt says all that the input does.
    """

    origin: Origin
    input: Mapping[str, Any]
    prompt: str
    before: tuple[Turn, ...] = ()
    human: str | None = None
    whole: bool = True

    @property
    def asked(self) -> str:
        """All that is answered, as the query of a `Score` head."""
        return "\n".join((*(turn.text for turn in self.before), self.prompt))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """A question with the answers that were drawn, and what each is worth."""

    question: Question
    answers: tuple[str, ...]
    values: tuple[float, ...] = ()


def read_questions(
    path: Path,
    task: AnyTask,
    source: Source | None = None,
    *,
    kind: str | None = None,
    answer: str = "answer",
) -> list[Question]:
    """Dialogues, of which each of the assistant's turns is a human answer to the user's before it;
    or JSONL of a task's inputs.

    Args:
        kind: `dialogues` for these; by default they are told by their fields.
        answer: of inputs, the field with the human answer; it is no part of the input.

    Raises:
        BadRows: lines that are none.
        EmptyData: there is nothing to ask.
        NotTrainable: dialogues for a task whose input has no turns.
    """
    source = source or Source()
    fields = fields_of(path, source)
    talk = kind == "dialogues" or (answer not in fields and any(name in fields for name in TURNS))
    questions = _of_dialogues if talk else partial(_of_inputs, answer=answer)
    found = list(questions(path, task, source))
    if not found:
        raise EmptyData(f"Nothing in {path} asks anything.")
    return found


def _of_dialogues(path: Path, task: AnyTask, source: Source) -> Iterator[Question]:
    for row in read(path, "dialogues", source).require():
        assert isinstance(row, Dialogue)
        for place, turn in enumerate(row.turns):
            if turn.role == "assistant" and place and row.turns[place - 1].role == "user":
                asked = row.turns[:place]
                yield Question(
                    origin=row.origin,
                    input=conversation(task, asked),
                    prompt=asked[-1].text,
                    before=asked[:-1],
                    human=turn.text,
                )


def _of_inputs(path: Path, task: AnyTask, source: Source, *, answer: str) -> list[Question]:
    questions: list[Question] = []
    problems: list[Problem] = []
    [field] = task.input_type.from_text("text")
    for found in from_jsonl(path, encoding=source.encoding, max_line=source.max_line):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        origin, record = found
        given = {name: value for name, value in record.items() if name != answer}
        human, text = record.get(answer), given.get(field)
        try:
            task.parse(given)
        except GPTFlowError as error:
            problems.append(Problem(origin, "field", error.message.rstrip(".")))
            continue
        if human is not None and (not isinstance(human, str) or not human.strip()):
            problems.append(Problem(origin, "field", f"{answer!r} must be a text, not blank"))
            continue
        prompt = text if isinstance(text, str) else json.dumps(given, ensure_ascii=False)
        questions.append(
            Question(
                origin=origin,
                input=given,
                prompt=prompt,
                human=human,
                whole=set(given) == {field} and isinstance(text, str),
            )
        )
    if problems:
        raise error_for(problems)
    return questions


def draw(
    engine: Engine,
    vocabulary: Vocabulary,
    task: AnyTask,
    questions: Sequence[Question],
    *,
    n: int,
    temperature: float,
    seed: int = 0,
    kept: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Sampled]:
    """`n` answers to each question, as the task's `Generate` head would give them.

    Args:
        kept: a file of answers; those that are in it are not drawn again, and others are put
            into it as they come.

    Raises:
        NotTrainable: the task's head is another one.
        EngineError: an answer failed.
    """
    recorder = TaskRecorder(task, vocabulary, context=engine.model.context, untrained=True)
    served = engine.adapters().get(recorder.adapter)
    about = (engine.model.sha256, served.sha256 if served else "", n, temperature, seed)
    known = _read_kept(kept)
    answers: list[tuple[str, ...]] = []
    for start in range(0, len(questions), TOGETHER):
        part = questions[start : start + TOGETHER]
        keys = [_key(task.name, about, question) for question in part]
        missing = [number for number, key in enumerate(keys) if key not in known]
        requests = recorder.record([part[number].input for number in missing])
        futures: list[Future[Raw]] = [
            engine.submit(_many(request, task, n, temperature, seed, bare=served is None))
            for request in requests
        ]
        for number, future in zip(missing, futures, strict=True):
            raw = future.result()
            assert isinstance(raw, Generated)
            known[keys[number]] = tuple(each.text for each in raw.continuations)
            if kept is not None:
                _keep(kept, keys[number], part[number], known[keys[number]])
        answers += [known[key] for key in keys]
        progress(len(answers))
    return [Sampled(q, texts) for q, texts in zip(questions, answers, strict=True)]


def judged(engine: Engine, judge: AnyTask, sampled: Sequence[Sampled]) -> list[Sampled]:
    """What a task with a `Score` head makes of each answer; blank ones are left out.

    Raises:
        NotTrainable: the judge's head is no `Score` over a list.
        AdapterNotFound: the head names an adapter, and that is not served.
    """
    head, prompt = judge.head, judge.prompt
    if not isinstance(head, Score) or head.each is None or prompt is None:
        raise NotTrainable(
            f"Task {judge.name!r} cannot judge answers.",
            hint='It needs a prompt and a head such as `Score(each="items", adapter="judge")`.',
        )
    if head.adapter is not None and head.adapter not in engine.adapters():
        raise AdapterNotFound(
            f"The adapter {head.adapter!r} of {judge.name!r} is not served.",
            hint=f"`gptflow train {judge.name} --data scores.jsonl`, then "
            f"`gptflow adapters promote {head.adapter}`.",
        )

    async def values(each: Sampled) -> Sampled:
        text = judge.input_type.from_text(each.question.asked)
        answers = tuple(answer for answer in each.answers if answer.strip())
        if not answers:
            return Sampled(each.question, ())
        parsed = judge.parse({**text, str(head.each): list(answers)})
        context = JobContext(
            engine, Job(id="judge", task=judge.name, input=None), plugin="", map=_no_map
        )
        variables = dict(parsed) | dict(judge.prepare(parsed))
        raw = await context.ask(head, prompt, variables)
        assert isinstance(raw, Scored)
        return Sampled(each.question, answers, raw.values)

    async def all_values() -> list[Sampled]:
        found: list[Sampled] = []
        for start in range(0, len(sampled), TOGETHER):
            found += await asyncio.gather(*map(values, sampled[start : start + TOGETHER]))
        return found

    return asyncio.run(all_values())


def checked(check: Check, sampled: Sequence[Sampled]) -> list[Sampled]:
    """What a check makes of each answer; of the same answer to a question it is asked once.

    Raises:
        InvalidInput: the check fails, or gives no finite number.
    """
    found = []
    for each in sampled:
        values: dict[str, float] = {}
        for answer in dict.fromkeys(each.answers):
            try:
                values[answer] = float(check(each.question.input, answer))
            except GPTFlowError:
                raise
            except Exception as error:
                raise InvalidInput(
                    f"The check fails on an answer to {each.question.origin}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if not math.isfinite(values[answer]):
                raise InvalidInput(
                    f"The check gives {values[answer]} for an answer to {each.question.origin}.",
                    hint="It must give a finite number, of which more is better.",
                )
        found.append(dataclasses.replace(each, values=tuple(values[a] for a in each.answers)))
    return found


def load_check(name: str) -> Check:
    """A function by `module:function`.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"There is no check {name!r}: {error}.", hint="Name it as `module:function`."
        ) from None
    if not callable(found):
        raise ConfigError(f"{name} is no function.", hint="It takes an input and an answer.")
    check: Check = found
    return check


def score_rows(sampled: Sequence[Sampled]) -> list[ScoredPair]:
    """Rows for a discriminator: answers with their values, or people's with 1 and others with 0.

    Blank answers are left out, and so are drawn ones that a person gave too.
    """
    rows = []
    for each in sampled:
        values = dict(zip(each.answers, each.values or [0.0] * len(each.answers), strict=True))
        if each.question.human is not None and not each.values:
            values[each.question.human] = 1.0
        elif not each.values:
            continue
        rows += [
            ScoredPair(
                origin=each.question.origin,
                query=each.question.asked,
                candidate=answer,
                score=value,
            )
            for answer, value in values.items()
            if answer.strip()
        ]
    return rows


def preference_rows(sampled: Sequence[Sampled], *, margin: float = 0.0) -> list[Preference]:
    """The best answer to each question and the worst, where they are more than `margin` apart."""
    rows = []
    for each in sampled:
        said = [
            (value, answer)
            for answer, value in zip(each.answers, each.values, strict=False)
            if answer.strip()
        ]
        if not said:
            continue
        best, worst = max(said, key=lambda pair: pair[0]), min(said, key=lambda pair: pair[0])
        if best[0] - worst[0] > margin and best[1].strip() != worst[1].strip():
            question = each.question
            rows.append(
                Preference(
                    origin=question.origin,
                    prompt=question.prompt,
                    before=question.before,
                    input=None if question.whole else question.input,
                    chosen=best[1],
                    rejected=worst[1],
                )
            )
    return rows


def _many(
    request: Request, task: AnyTask, n: int, temperature: float, seed: int, *, bare: bool
) -> Request:
    """A task's request for `n` draws."""
    head = request.head
    if not isinstance(head, Generate):
        raise NotTrainable(
            f"Task {task.name!r} asks for {type(head).__name__}, and only Generate draws answers."
        )
    head = dataclasses.replace(
        head, n=n, temperature=temperature, adapter=None if bare else head.adapter
    )
    return Request(prompt=request.prompt, head=head, seed=seed, job_class="batch")


def _key(task: str, about: Sequence[Any], question: Question) -> str:
    content = json.dumps([task, *about, question.input], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _read_kept(path: Path | None) -> dict[str, tuple[str, ...]]:
    known: dict[str, tuple[str, ...]] = {}
    if path is None or not path.is_file():
        return known
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            record = json.loads(line)
            known[record["key"]] = tuple(record["answers"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill tore
    return known


def _keep(path: Path, key: str, question: Question, answers: Sequence[str]) -> None:
    record = {"key": key, "input": question.input, "human": question.human, "answers": answers}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


async def _no_map(job: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
    raise NotTrainable(f"Task {job.task!r} runs {task!r}, and a judge may not.")
