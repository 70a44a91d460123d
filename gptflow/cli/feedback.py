"""`gptflow feedback`: what people say about answers, for the next training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table, time_text

if TYPE_CHECKING:
    from gptflow.training.feedback import Feedback, FeedbackTable

_SHOWN = 48
"""Characters of a text in a table."""


@click.group(short_help="Collect corrected answers to train on.")
def feedback() -> None:
    """Collect right labels and people's replies: `gptflow train TASK --feedback` takes them."""


@feedback.command()
@click.argument("job", required=False)
@click.option("--task", help="That is to learn from it.  [default: the job's]")
@click.option("--input", "given", metavar="TEXT", help="In place of a job's: text, -, @FILE.json.")
@click.option(
    "--label", "labels", multiple=True, metavar="[HEAD=]LABEL", help="The right one; one per head."
)
@click.option("--reply", metavar="TEXT", help="What a person answered.")
@json_option
@click.pass_obj
def add(
    session: Session,
    job: str | None,
    task: str | None,
    given: str | None,
    labels: tuple[str, ...],
    reply: str | None,
    as_json: bool,
) -> None:
    """Say what JOB should have answered: a label, or what a person replied after a hand-off."""
    from gptflow.cli.inputs import read_input
    from gptflow.errors import InvalidInput

    if bool(labels) == (reply is not None):
        raise click.UsageError("Give the right labels or a reply: `--label LABEL`, `--reply TEXT`.")
    if (job is None) == (given is None) or (job is None and task is None):
        raise click.UsageError("Give a JOB, or `--task TASK --input TEXT`.")
    if job is not None:
        with session.client(needs_queue=True) as client:
            record = client.transport.job(job)
            value = client.transport.job_input(job)
        task = task or record.task
        if record.items is not None:
            raise InvalidInput(
                f"{job} carries rows of a batch.",
                hint="Give a row's text: `gptflow feedback add --task TASK --input TEXT`.",
            )
        if value is None:
            raise InvalidInput(
                f"The input of {job} is not kept any more.",
                hint="Give it again: `gptflow feedback add --task TASK --input TEXT`.",
            )
    registry = session.registry(session.settings(), warn=True)
    assert task is not None
    known = registry.task(task)
    if given is not None:
        value = read_input(task, given, lambda: registry)
    made = _table(session).add(known, value, labels=_labels(labels), reply=reply, job=job)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    click.echo(f"{made.id} is kept for {task}.")
    click.echo(f"  gptflow train {task} --continue ADAPTER --feedback")


@feedback.command("list")
@click.option("--task", help="Only for this one.")
@json_option
@click.pass_obj
def list_(session: Session, task: str | None, as_json: bool) -> None:
    """List what was collected, the oldest first, and how many trainings have taken it."""
    from gptflow.training.runs import RunTable

    table = _table(session)
    rows = table.rows(task)
    taken = table.taken(RunTable(session.settings().data_dir / "runs")) if rows else {}
    if as_json:
        print_json([r.model_dump(mode="json") | {"runs": taken.get(r.id, [])} for r in rows])
        return
    print_table(
        ("id", "at", "task", "job", "text", "right answer", "trainings"),
        (
            (
                r.id,
                time_text(r.at.timestamp()),
                r.task,
                r.job,
                _short(r.said),
                _short(_answer(r)),
                len(taken.get(r.id, ())) or None,
            )
            for r in rows
        ),
        empty="There is no feedback. `gptflow feedback add JOB --label LABEL` makes some.",
    )


@feedback.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def remove(session: Session, ids: tuple[str, ...]) -> int:
    """Delete rows. What trainings have taken already stays in their data. Exit code 8 if none."""
    count = _table(session).remove(ids)
    note(f"{count} of {len(ids)} rows are deleted.")
    return 0 if count else 8


def _table(session: Session) -> FeedbackTable:
    from gptflow.training.feedback import FeedbackTable

    return FeedbackTable(session.settings().data_dir / "feedback")


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    from gptflow.training.data.rows import LABEL

    labels: dict[str, str] = {}
    for each in given:
        head, equals, label = each.partition("=")
        labels[head if equals else LABEL] = label if equals else head
    if len(labels) < len(given):
        raise click.UsageError("Several --label need a head each: `--label topic=fees`.")
    return labels


def _answer(row: Feedback) -> str:
    if row.turns:
        return row.turns[-1].content
    return ", ".join(v if len(row.labels) == 1 else f"{n}={v}" for n, v in row.labels.items())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
