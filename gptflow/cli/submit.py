"""`gptflow submit`: one task on every row of a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import (
    PARTIAL,
    SECONDS,
    Session,
    local_option,
    model_option,
    note,
    print_json,
    progress,
)
from gptflow.errors import ErrorInfo, InvalidInput, TaskNotFound, from_info

if TYPE_CHECKING:
    from gptflow.job import Batch


@click.command(short_help="Run a task on every row of a JSONL file.")
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where results go.")
@click.option("--wait", is_flag=True, help="Wait for the results; --out implies it.")
@click.option("--tenant", default="default", show_default=True, help="Who the rows are for.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the random draws.")
@click.option("--timeout", type=SECONDS, default=600.0, show_default=True, help="Longest silence.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@local_option
@model_option
@click.pass_obj
def submit(
    session: Session,
    task: str,
    file: str,
    out: Path | None,
    wait: bool,
    tenant: str,
    seed: int | None,
    timeout: float,
    as_json: bool,
    local: bool,
    model: str | None,
) -> int:
    """Run TASK on every row of FILE, a JSONL file of inputs or of {"custom_id", "input"}.

    The output has one line a row, in the rows' order: custom_id, output, error, provenance.
    A row that fails does not stop the others; the exit code is then 9.
    """
    settings = session.settings(model=model)
    if out is not None and file != "-" and out.exists() and out.samefile(file):
        raise click.UsageError("--out is the input file.")
    rows, bad = _read_rows(file, settings.max_payload)
    total = len(rows) + len(bad)
    if not total:
        raise InvalidInput(f"{file} has no rows.")
    started = time.monotonic()
    lines = bad
    with session.client(local=local, model=model) as client:
        here = client.settings.broker_url == "memory://"
        if rows and not (wait or out or here):
            batch = client.submit_many(task, named(rows), tenant=tenant, seed=seed)
            summary = {"batch": batch.id, "rows": len(rows), "bad_rows": len(bad)}
            print_json(summary) if as_json else click.echo(batch.id)
            return PARTIAL if bad else 0
        # Opened first: a file that cannot be written is found out before any work is done.
        with _output(out) as write:
            try:
                if rows:
                    batch = client.submit_many(task, named(rows), tenant=tenant, seed=seed)
                    _collect(batch, rows, lines, timeout)
            except KeyboardInterrupt:
                batch.cancel()
                raise click.Abort from None
            finally:
                # Whatever happened, what has ended is not lost.
                write(lines)
    sent = [lines[number]["error"] for number in rows]
    if sent and all(error and error["code"] == TaskNotFound.code for error in sent):
        session.note_stale_worker(task)
        raise from_info(sent[0])
    failed = sum(line["error"] is not None for line in lines.values())
    seconds = time.monotonic() - started
    if as_json and out:
        print_json({"rows": total, "failed": failed, "seconds": round(seconds, 3)})
    else:
        note(
            f"{total} row{'s' if total > 1 else ''}: {total - failed} done, {failed} failed "
            f"in {seconds:.1f} s ({total / seconds:.1f} rows/s)."
        )
    return PARTIAL if failed else 0


def _collect(
    batch: Batch, rows: Mapping[int, Any], lines: dict[int, dict[str, Any]], timeout: float
) -> None:
    """Add an output line for each row that ends, by line number."""
    numbers = list(rows)
    with progress("Batch", len(rows)) as update:
        for done, (index, result) in enumerate(batch.as_completed(timeout), 1):
            lines[numbers[index]] = result.as_row()
            update(done)


def _read_rows(file: str, max_payload: int) -> tuple[dict[int, Any], dict[int, dict[str, Any]]]:
    """The good rows, and an output line for each bad one, by line number."""
    rows: dict[int, Any] = {}
    bad: dict[int, dict[str, Any]] = {}
    for number, line in _lines(file):
        try:
            if len(line) > max_payload:
                raise ValueError(f"has {len(line)} bytes; {max_payload} are taken")
            rows[number] = _parse_row(line, number)
        except (ValueError, RecursionError) as error:
            bad[number] = _bad_row(number, f"Line {number} {error}.")
    return rows, bad


def _parse_row(line: bytes, number: int) -> Any:
    """One row of the file. Raises `ValueError` with the end of a sentence on what is wrong."""
    from gptflow.client import split_row
    from gptflow.envelope import MAX_CUSTOM_ID

    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    custom_id, value = split_row(row, _name(number))
    if value is None:
        raise ValueError("holds no input")
    if len(custom_id) > MAX_CUSTOM_ID:
        raise ValueError(f"has an id of over {MAX_CUSTOM_ID} characters")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    stream = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115
    with stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line


def _bad_row(number: int, message: str) -> dict[str, Any]:
    error = ErrorInfo(InvalidInput.code, message)
    return {
        "custom_id": _name(number),
        "output": None,
        "error": error.as_dict(),
        "provenance": None,
    }


def _name(number: int) -> str:
    """What a row without an id of its own is called."""
    return f"line-{number}"


def named(rows: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    """The rows with their ids, those without one named after their line."""
    from gptflow.client import split_row

    for number, row in rows.items():
        custom_id, value = split_row(row, _name(number))
        yield {"custom_id": custom_id, "input": value}


@contextmanager
def _output(out: Path | None) -> Iterator[Callable[[Mapping[int, dict[str, Any]]], None]]:
    """Yields a function that writes output lines, in the rows' order."""
    try:
        opened = click.open_file("-", "w") if out is None else out.open("w", encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(
            f"{out} cannot be written: {error.strerror}.", param_hint="'--out'"
        ) from None
    with opened as stream:

        def write(lines: Mapping[int, dict[str, Any]]) -> None:
            for number in sorted(lines):
                stream.write(json.dumps(lines[number], ensure_ascii=False) + "\n")

        yield write
