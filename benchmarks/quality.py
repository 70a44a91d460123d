"""`python -m benchmarks.quality`: does a faster setting of the engine still answer the same?

Every setting answers the same 1,000 `Choose` prompts and reads the same 50,000 tokens of natural
text, through the engine as it serves: its kernels, its batches, its shared prefixes. A setting
passes when its label is the reference's on at least 99 % of the prompts and its perplexity at
most 1 % higher. Ends with exit code 1 if one does not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks import machine, prompts
from benchmarks.peers.environments import find_model, model_option
from benchmarks.prompts import Question
from gptflow.config import Settings
from gptflow.engine import load
from gptflow.engine.tokenizer import Vocabulary
from gptflow.heads import Choose, Chosen
from gptflow.prompt import RenderedPrompt
from gptflow.request import Engine, Request

AGREEMENT = 0.99
PERPLEXITY = 1.01
CHUNK = 512

_DTYPES = get_args(Settings.model_fields["dtype"].annotation)


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """At most `CHUNK` tokens of text: a word, and the rest to be predicted from it."""

    first: str
    rest: str
    tokens: int

    def request(self) -> Request:
        # A label is a continuation like any other; the second one only makes it a choice.
        head = Choose(labels=(self.rest, "."), calibrate=False)
        return Request(prompt=RenderedPrompt.plain(self.first), head=head)


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What one setting says.

    Attributes:
        chosen: of each question.
        loss: nats per token of the passages.
    """

    dtype: str
    chosen: tuple[Chosen, ...]
    loss: float
    seconds: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def answer(engine: Engine, questions: Sequence[Question], passages: Sequence[Passage]) -> Answers:
    """Put everything to an engine."""
    began = time.perf_counter()
    chosen = list(_ask(engine, [question.request() for question in questions]))
    read = _ask(engine, [passage.request() for passage in passages])
    losses = [
        -answer.scores[passage.rest] * passage.tokens
        for answer, passage in zip(read, passages, strict=True)
    ]
    return Answers(
        dtype=engine.model.dtype,
        chosen=tuple(chosen),
        loss=sum(losses) / sum(passage.tokens for passage in passages),
        seconds=time.perf_counter() - began,
    )


def compare(
    reference: Answers, candidate: Answers, questions: Sequence[Question]
) -> dict[str, Any]:
    """How far a candidate is from the reference, and whether that passes."""
    pairs = list(zip(reference.chosen, candidate.chosen, strict=True))
    differences = [abs(a.scores[label] - b.scores[label]) for a, b in pairs for label in a.scores]
    same = [a.label == b.label for a, b in pairs]
    margins = [_margin(a) for (a, _), equal in zip(pairs, same, strict=True) if not equal]
    agreement = statistics.mean(same)
    change = candidate.perplexity / reference.perplexity
    asked, kept = (
        Counter(q.kind for q, equal in zip(questions, same, strict=True) if equal or not only)
        for only in (False, True)
    )
    return {
        "dtype": candidate.dtype,
        "agreement": round(agreement, 4),
        "agreement_by_kind": {kind: round(kept[kind] / n, 4) for kind, n in asked.items()},
        "max_difference": round(max(differences), 4),
        "mean_difference": round(statistics.mean(differences), 5),
        "max_margin_lost": round(max(margins, default=0.0), 4),
        "accuracy": round(accuracy(candidate, questions), 4),
        "perplexity": round(candidate.perplexity, 4),
        "perplexity_change": round(change - 1, 5),
        "seconds": round(candidate.seconds, 1),
        "passed": agreement >= AGREEMENT and change <= PERPLEXITY,
    }


def accuracy(answers: Answers, questions: Sequence[Question]) -> float:
    """Share of the answers that are people's."""
    pairs = zip(answers.chosen, questions, strict=True)
    return statistics.mean(chosen.label == question.answer for chosen, question in pairs)


def chunks(texts: Iterable[str], vocabulary: Vocabulary, tokens: int) -> list[Passage]:
    """Text cut between words into passages of at most `CHUNK` tokens, so many in all."""
    found: list[Passage] = []
    words = (word for text in texts for word in text.split())
    while tokens > 0 and (first := next(words, None)):
        rest = " ".join(_fill(words, vocabulary, min(CHUNK - 1, tokens)))
        if not rest:
            break
        found.append(Passage(first, rest, len(vocabulary.encode_continuation(rest, after=first))))
        tokens -= found[-1].tokens
    return found


def _fill(words: Iterator[str], vocabulary: Vocabulary, room: int) -> Iterator[str]:
    for word in words:
        room -= len(vocabulary.encode_text(f" {word}"))
        if room < 0:
            return  # the word that does not fit is left out
        yield word


def _ask(engine: Engine, requests: Sequence[Request]) -> Iterator[Chosen]:
    for future in [engine.submit(request) for request in requests]:
        result = future.result()
        assert isinstance(result, Chosen)
        yield result


def _margin(chosen: Chosen) -> float:
    """By how much the best label beats the next one, in nats per token."""
    best, second = sorted(chosen.scores.values(), reverse=True)[:2]
    return best - second


@click.command()
@click.argument("candidates", nargs=-1, type=click.Choice(_DTYPES))
@click.option("--reference", type=click.Choice(_DTYPES), default="float32", show_default=True)
@click.option("--prompts", "count", default=1000, show_default=True)
@click.option("--tokens", default=50_000, show_default=True)
@click.option("--threads", type=click.IntRange(1))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=prompts.FOLDER,
    show_default=True,
    help="Folder of the data sets; see benchmarks/README.md.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
@model_option
def main(
    candidates: Sequence[str],
    reference: str,
    count: int,
    tokens: int,
    threads: int | None,
    data: Path,
    as_json: bool,
    model: str,
) -> None:
    """Compare CANDIDATES, dtypes of the engine, with float32.  [default: auto]"""
    if not data.is_dir():
        raise click.ClickException(
            f"There is no folder {data}. It is not part of the repository: benchmarks/README.md "
            "names the data sets. Give its place with --data."
        )
    folder = find_model(model)
    questions = prompts.questions(data, count)
    passages = chunks(prompts.texts(data), Vocabulary.from_folder(folder), tokens)

    def run(dtype: Any) -> Answers:
        engine = load(folder, dtype=dtype, slot_tokens=1024, threads=threads)
        try:
            click.echo(f"asking {engine.model.dtype}", err=True)
            return answer(engine, questions, passages)
        finally:
            engine.close()

    base = run(reference)
    results = [compare(base, run(dtype), questions) for dtype in candidates or ("auto",)]
    report = {
        "machine": machine.describe(quick=True),
        "model": model,
        "prompts": len(questions),
        "tokens": sum(passage.tokens for passage in passages),
        "reference": {
            "dtype": base.dtype,
            "accuracy": round(accuracy(base, questions), 4),
            "perplexity": round(base.perplexity, 4),
            "seconds": round(base.seconds, 1),
        },
        "gate": {"agreement": AGREEMENT, "perplexity_change": round(PERPLEXITY - 1, 4)},
        "candidates": results,
    }
    click.echo(json.dumps(report, indent=2))
    if not as_json:
        _print(report)
    if not all(result["passed"] for result in results):
        raise SystemExit(1)


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"\n{report['prompts']} prompts, {report['tokens']} tokens; perplexity of "
        f"{report['reference']['dtype']} is {report['reference']['perplexity']}\n"
    )
    click.echo("dtype      agreement  max diff  mean diff  perplexity  change   passes")
    for row in report["candidates"]:
        click.echo(
            f"{row['dtype']:<10} {row['agreement']:>9.2%}  {row['max_difference']:>8.4f}  "
            f"{row['mean_difference']:>9.5f}  {row['perplexity']:>10.4f}  "
            f"{row['perplexity_change']:>+6.2%}   {'yes' if row['passed'] else 'NO'}"
        )


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.quality")
