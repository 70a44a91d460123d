"""The demo: every plugin on sample input, and a batch, through a real queue."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptflow.cli.session import PARTIAL, Session, console, print_table, progress

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.plugins import Registry
    from gptflow.result import Result

BATCH_TASK = "sentiment.classify"
BATCH_SOURCE = ("sample", "market")
BATCH_ROWS = 200
TIMEOUT = 300.0

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Showcase:
    """A task to show: which of its examples, and what of them fits in a table."""

    task: str
    title: str
    samples: tuple[int, ...]
    columns: tuple[str, ...]
    cells: Callable[[Any, Any], tuple[object, ...]]


SHOWCASES = (
    Showcase(
        "customer.reply",
        "Customer service",
        (0, 1, 18, 23, 30, 35),
        ("customer", "action", "intent", "answer"),
        lambda given, out: (
            _last_turn(given),
            out["action"],
            out["intent"]["label"],
            _reply(out),
        ),
    ),
    Showcase(
        "sentiment.classify",
        "Sentiment monitoring",
        (1, 2, 5, 37),
        ("post", "sentiment", "topic", "entities"),
        lambda given, out: (
            given if isinstance(given, str) else given["text"],
            f"{out['sentiment']['label']} {max(out['sentiment']['probs'].values()):.2f}",
            out["topic"]["label"],
            ", ".join(dict.fromkeys(entity["ticker"] for entity in out["entities"])),
        ),
    ),
    Showcase(
        "recommend.rank",
        "Recommendation scoring",
        (0, 6, 29),
        ("user", "best", "score", "why"),
        lambda given, out: (
            given["user"]["id"],
            _first_item(given, out),
            f"{out['items'][0]['score']:.2f}",
            out["items"][0]["explanation"],
        ),
    ),
    Showcase(
        "code.generate",
        "Code generation",
        (1, 20),
        ("request", "code", "tests"),
        lambda given, out: (
            given if isinstance(given, str) else given["prompt"],
            out["best"] or "(nothing that parses)",
            _tests(out),
        ),
    ),
)


def run_demo(session: Session, client: Client) -> int:
    """Show every plugin that is installed, then a batch. Exit code 9 if anything failed."""
    registry = session.registry(client.settings, warn=True)
    started = time.monotonic()
    shown = [each for each in SHOWCASES if each.task in registry.tasks]
    failures = sum(_show(client, registry, each) for each in shown)
    if BATCH_TASK in registry.tasks:
        failures += _batch(client, registry)
    console().print(f"The demo took {time.monotonic() - started:.1f} s.", style="bold")
    return PARTIAL if failures else 0


def _show(client: Client, registry: Registry, showcase: Showcase) -> int:
    examples = _examples(registry, showcase.task)
    inputs = [examples[number]["input"] for number in showcase.samples]
    jobs = [client.submit(showcase.task, value, job_class="interactive") for value in inputs]
    results = [job.wait(TIMEOUT) for job in jobs]
    rows = []
    for given, result in zip(inputs, results, strict=True):
        seconds = f"{sum(result.timings.values()):.2f}"
        if result.ok:
            rows.append((*showcase.cells(given, result.output), seconds))
        else:
            rows.append((str(given)[:80], *_failure(result, len(showcase.columns) - 1), seconds))
    print_table((*showcase.columns, "seconds"), rows, title=f"{showcase.title}: {showcase.task}")
    return sum(not result.ok for result in results)


def _batch(client: Client, registry: Registry) -> int:
    scheme, location = BATCH_SOURCE
    feed = itertools.islice(registry.sources[scheme](location), BATCH_ROWS)
    rows = [{"id": post["id"], "text": post["text"]} for post in feed]
    labels: Counter[str] = Counter()
    failed = 0
    started = time.monotonic()
    batch = client.submit_many(BATCH_TASK, rows)
    with progress(f"{BATCH_ROWS} rows of {BATCH_TASK}", BATCH_ROWS) as update:
        for done, (_, result) in enumerate(batch.as_completed(TIMEOUT), 1):
            if result.ok:
                labels[result.output["sentiment"]["label"]] += 1
            else:
                failed += 1
            update(done)
    seconds = time.monotonic() - started
    peak = max((worker.peak_in_flight for worker in client.transport.workers()), default=0)
    print_table(
        ("rows", "failed", *sorted(labels), "seconds", "rows/s", "most in flight"),
        [
            (
                BATCH_ROWS,
                failed,
                *(labels[name] for name in sorted(labels)),
                f"{seconds:.1f}",
                f"{BATCH_ROWS / seconds:.1f}",
                peak,
            )
        ],
        title=f"A batch through the queue: {BATCH_TASK}",
    )
    return failed


def _examples(registry: Registry, task: str) -> Sequence[Row]:
    from gptflow.testing import examples

    return examples(registry.task(task))


def _failure(result: Result, width: int) -> tuple[str, ...]:
    message = f"[{result.error.code}] {result.error.message}" if result.error else result.state
    return (message, *("",) * (width - 1))


def _first_item(given: Row, out: Row) -> str:
    texts = {item["item_id"]: item["text"] for item in given["candidates"]}
    return str(texts[out["items"][0]["item_id"]])


def _last_turn(given: Any) -> str:
    return given if isinstance(given, str) else str(given["turns"][-1]["text"])


def _reply(out: Row) -> str:
    for field, text in (("answer", "text"), ("clarification", "question"), ("handoff", "message")):
        if out.get(field):
            return str(out[field][text])
    return ""


def _tests(out: Row) -> str:
    tests = out["candidates"][0]["tests"] if out["candidates"] else None
    return f"{tests['status']} ({tests['passed']} passed)" if tests else "none given"
