"""`python -m benchmarks.best_of_n DATA`: MBPP, one greedy program against the best of ten.

The task `code.generate` answers each problem twice: greedily, and with n samples that it ranks by
the tests it can see. Whether a program solves a problem is decided by all of the problem's tests.
By default all are visible, as is customary for this data set; with `--visible 1` the other two
stay hidden from the prompt and from the ranking.

pass@k is the unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large
Language Models Trained on Code"). Problems that are in the output folder are not asked again, so
that a run may be killed and started anew. Ends with exit code 1 if the best of n solves less than
`--gate` times what the greedy program does.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import gptflow
from gptflow import config
from gptflow.training.evaluation.samples import SampleAnswers
from gptflow_code_generation.imports import imports_for
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.probe import choose_backend
from gptflow_code_generation.sandbox.trial import run_trial

TEST_IDS = range(11, 511)
"""Of the data set's test split."""

TOGETHER = 4
"""Problems that are answered side by side; as many are lost when the run is killed."""

TIMEOUT_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """One problem.

    Attributes:
        greedy: whether the greedy program solves it.
        best: whether the first of the ranked samples does.
        tried: samples.
        solved: how many of them solve it.
    """

    task_id: int
    greedy: bool
    best: bool
    tried: int
    solved: int


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True)
@click.option("-n", "--samples", type=click.IntRange(2, 20), default=10, show_default=True)
@click.option("--temperature", type=float, default=0.7, show_default=True)
@click.option("--tokens", type=int, default=192, show_default=True, help="Most in one program.")
@click.option("--visible", type=click.IntRange(1), help="Tests that the task sees.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--gate", type=float, default=1.8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("best_of_n"))
def main(
    data: Path,
    limit: int,
    samples: int,
    temperature: float,
    tokens: int,
    visible: int | None,
    seed: int,
    gate: float,
    out: Path,
) -> None:
    rows = problems(data)[:limit]
    settings = {
        "samples": samples, "temperature": temperature, "tokens": tokens, "visible": visible,
        "seed": seed, "model": str(config.load().model),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    kept = out / f"problems-{digest}.jsonl"
    known = read_kept(kept)
    missing = [row for row in rows if row["task_id"] not in known]
    started = time.monotonic()
    with kept.open("a", encoding="utf-8") as file:
        for done, outcome in enumerate(answer(missing, settings), 1):
            known[outcome.task_id] = outcome
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            file.flush()
            rate = (time.monotonic() - started) / done
            print(
                f"{len(known)}/{len(rows)} problems, {rate:.1f} s each, "
                f"{rate * (len(missing) - done) / 60:.0f} min left",
                file=sys.stderr,
            )
    found = summarise([known[row["task_id"]] for row in rows], settings)
    (out / f"best_of_n-{digest}.json").write_text(json.dumps(found, indent=2) + "\n")
    table = markdown(found)
    (out / f"best_of_n-{digest}.md").write_text(table)
    print(table)
    sys.exit(0 if found["ratio"] is None or found["ratio"] >= gate else 1)


def problems(data: Path) -> list[dict[str, Any]]:
    """The test split of the sanitized problems, from the folder of the data sets or a file."""
    found = [data] if data.is_file() else sorted(data.rglob("sanitized-mbpp.json*"))
    if not found:
        raise click.UsageError(f"There is no sanitized-mbpp.json or .json.gz in {data}.")
    opener = gzip.open if found[0].suffix == ".gz" else open
    with opener(found[0], "rt", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = json.load(file)
    return [row for row in rows if row["task_id"] in TEST_IDS]


def read_kept(path: Path) -> dict[int, Outcome]:
    """What is known already; a line that a kill tore is left out."""
    known = {}
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
        for line in whole.splitlines():
            outcome = Outcome(**json.loads(line))
            known[outcome.task_id] = outcome
    return known


def answer(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Iterator[Outcome]:
    """Ask the task; the model is loaded when the first answer is wanted."""
    if not rows:
        return
    backend = choose_backend()
    with gptflow.Client("memory://") as flow:
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            jobs = [
                [
                    flow.submit("code.generate", given, seed=settings["seed"])
                    for given in inputs(row, settings)
                ]
                for row in part
            ]
            for row, (greedy, drawn) in zip(part, jobs, strict=True):
                one = greedy.result(timeout=3600)["candidates"]
                many = drawn.result(timeout=3600)["candidates"]
                passed = trials(backend, row["test_list"], [*one, *many])
                yield Outcome(
                    task_id=row["task_id"],
                    greedy=passed[0],
                    best=passed[1],
                    tried=len(many),
                    solved=sum(passed[1:]),
                )


def inputs(row: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The greedy question and the one for samples."""
    shared = {
        "prompt": row["prompt"],
        "tests": row["test_list"][: settings["visible"]],
        "mode": "generate",
        "max_new_tokens": settings["tokens"],
        "timeout_s": TIMEOUT_S,
    }
    many = {"n": settings["samples"], "temperature": settings["temperature"]}
    return [shared | {"n": 1}, shared | many]


def trials(
    backend: str, tests: Sequence[str], candidates: Sequence[Mapping[str, Any]]
) -> list[bool]:
    """Whether each candidate passes all tests; those that the task has run count as they are."""
    imports = imports_for("\n".join(tests))
    known: dict[str, bool] = {}
    for candidate in candidates:
        code, report = candidate["code"], candidate["tests"]
        if code in known:
            continue
        if not candidate["parses"] or report["status"] != "passed":
            known[code] = False  # it fails a visible test
        elif report["passed"] == len(tests):
            known[code] = True
        else:
            limits = Limits.for_timeout(TIMEOUT_S)
            trial = run_trial(backend, code, tests, imports=imports, limits=limits)
            known[code] = trial.status == "passed"
    return [known[candidate["code"]] for candidate in candidates]


def summarise(outcomes: Sequence[Outcome], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures; shares of the problems."""
    n = settings["samples"]
    answers = SampleAnswers(
        tried=np.array([outcome.tried for outcome in outcomes]),
        solved=np.array([outcome.solved for outcome in outcomes]),
        ks=(1, n),
    )
    greedy = sum(outcome.greedy for outcome in outcomes)
    best = sum(outcome.best for outcome in outcomes)
    return {
        **settings,
        "problems": len(outcomes),
        "greedy_solved": greedy,
        "best_solved": best,
        "greedy": round(greedy / len(outcomes), 4),
        "best_of_n": round(best / len(outcomes), 4),
        "ratio": round(best / greedy, 3) if greedy else None,
        **{name: round(value, 4) for name, value in answers.metrics().items()},
    }


def markdown(found: Mapping[str, Any]) -> str:
    n, shown = found["samples"], "all" if found["visible"] is None else found["visible"]
    lines = [
        f"MBPP, {found['problems']} problems, {found['model']}, temperature "
        f"{found['temperature']:g}, {shown} tests visible",
        "",
        "| figure | share of problems | problems |",
        "|---|---|---|",
        f"| greedy | {found['greedy']:.3f} | {found['greedy_solved']} |",
        f"| best of {n} | {found['best_of_n']:.3f} | {found['best_solved']} |",
        f"| pass@1 of samples | {found['pass@1']:.3f} | |",
        f"| pass@{n} | {found[f'pass@{n}']:.3f} | |",
        "",
        f"Best of {n} against greedy: "
        + ("greedy solves none" if found["ratio"] is None else f"{found['ratio']:.2f} times"),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
