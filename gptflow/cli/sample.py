"""`gptflow data sample`: several answers of a model to each prompt, and rows made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import (
    Number,
    Session,
    json_option,
    model_option,
    note,
    print_json,
    print_table,
    progress,
)
from gptflow.cli.sources import source_options

if TYPE_CHECKING:
    from gptflow.config import Settings
    from gptflow.engine.tokenizer import Vocabulary
    from gptflow.plugins import Registry
    from gptflow.request import Engine
    from gptflow.training.data.source import Source
    from gptflow.training.sampling import Sampled

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("task")
@click.argument("file", type=_FILE)
@click.option("--out", required=True, type=_FILE, help="Folder for what comes of it.")
@click.option("-n", "n", type=click.IntRange(2, 64), default=8, show_default=True)
@click.option(
    "--temperature", type=Number("number", least=0, above=True), default=0.8, show_default=True
)
@click.option("--judge", metavar="TASK", help="With a Score head, to say which answer is better.")
@click.option("--check", metavar="MODULE:FUNCTION", help="Of an input and an answer: its value.")
@click.option("--answer", metavar="FIELD", default="answer", show_default=True, help="A person's.")
@click.option(
    "--margin",
    type=Number("number", least=0),
    default=0.0,
    show_default=True,
    help="By which a preference's best answer is better.",
)
@click.option("--limit", type=click.IntRange(1), help="Prompts to take, from the first.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@model_option
@source_options
@json_option
@click.pass_obj
def sample(
    session: Session,
    /,
    task: str,
    file: Path,
    out: Path,
    n: int,
    temperature: float,
    judge: str | None,
    check: str | None,
    answer: str,
    margin: float,
    limit: int | None,
    seed: int,
    model: str | None,
    kind: str | None,
    source: Source,
    as_json: bool,
) -> None:
    """Have TASK answer each prompt of FILE several times, with the model in this process.

    FILE holds dialogues, or JSONL of the task's inputs. In the folder: samples.jsonl, what was
    drawn, which is not drawn again; scores.jsonl, to train a discriminator on, where people's
    answers are known or a check values them; preferences.jsonl, the best and the worst answer
    where a judge or a check says which these are.
    """
    from gptflow.training import sampling
    from gptflow.training.data.writing import write

    if judge is not None and check is not None:
        raise click.UsageError("--judge and --check do not go together.")
    if kind not in (None, "dialogues"):
        raise click.UsageError("FILE holds dialogues or a task's inputs.")
    settings = session.settings(model=model)
    registry = session.registry(settings, warn=True)
    known = registry.task(task)
    checks = None if check is None else sampling.load_check(check)
    judging = None if judge is None else registry.task(judge)
    questions = sampling.read_questions(file, known, source, kind=kind, answer=answer)[:limit]
    out.mkdir(parents=True, exist_ok=True)
    with (
        _engine(settings, registry) as (engine, vocabulary),
        progress("sampling", len(questions), "prompts") as report,
    ):
        sampled = sampling.draw(
            engine, vocabulary, known, questions, n=n, temperature=temperature, seed=seed,
            kept=out / "samples.jsonl", progress=report,
        )  # fmt: skip
        drawn = [answer for each in sampled for answer in each.answers]
        if judging is not None:
            note("judging")
            sampled = sampling.judged(engine, judging, sampled)
    if checks is not None:
        note("checking")
        sampled = sampling.checked(checks, sampled)
    scores = [] if judging is not None else sampling.score_rows(sampled)
    made: dict[str, Sequence[Any]] = {
        "scores.jsonl": scores,
        "preferences.jsonl": sampling.preference_rows(sampled, margin=margin),
    }
    for name, rows in made.items():
        if rows:
            write(out / name, rows)
    if not any(made.values()):
        note(
            f"No row came of it: there is no human answer (--answer {answer}), no --judge and no "
            "--check, or all answers are worth the same."
        )
    told: dict[str, Any] = {
        "prompts": len(sampled),
        "answers": len(drawn),
        "blank answers": sum(not answer.strip() for answer in drawn),
        **{name: len(rows) for name, rows in made.items()},
        **_values(sampled),
    }
    if as_json:
        print_json(told)
    else:
        print_table(("what", "value"), told.items())


@contextlib.contextmanager
def _engine(settings: Settings, registry: Registry) -> Iterator[tuple[Engine, Vocabulary]]:
    """The model in this process, with the adapters that a worker would serve."""
    from gptflow.engine.tokenizer import Vocabulary
    from gptflow.models import ModelStore
    from gptflow.queue.adapters import AdapterFollower
    from gptflow.queue.engine_factory import load_engine

    store = ModelStore(settings.cache_dir, offline=settings.offline)
    engine = load_engine(settings)
    try:
        AdapterFollower.of(engine, settings, registry).refresh()
        yield engine, Vocabulary.from_folder(store.find(settings.model).path)
    finally:
        engine.close()


def _values(sampled: Sequence[Sampled]) -> dict[str, float]:
    """What choosing is worth: the mean value of one answer, and of the best of all."""
    valued = [each.values for each in sampled if each.values]
    if not valued:
        return {}
    return {
        "mean value": round(sum(sum(v) / len(v) for v in valued) / len(valued), 4),
        "mean value of the best": round(sum(map(max, valued)) / len(valued), 4),
    }
