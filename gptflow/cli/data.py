"""`gptflow data`: what is in a file of rows, what is wrong with it, and parts and copies of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.sample import sample
from gptflow.cli.session import PARTIAL, Number, json_option, note, print_json, print_table
from gptflow.cli.sources import FORMATS, SCHEMES, source_options

if TYPE_CHECKING:
    from gptflow.training.data.checks import Findings
    from gptflow.training.data.reading import Reading
    from gptflow.training.data.rows import Row
    from gptflow.training.data.source import Source

METHODS = ("random", "stratified", "grouped", "temporal")

_FILE = click.Path(path_type=Path)
_SHARE = Number("share", least=0)


@click.group(short_help="Check, describe, split and convert data to train on.")
def data() -> None:
    """Check, describe, split, convert and draw data to train on.

    Files are JSONL, CSV, TSV, Parquet or CoNLL, compressed by gzip or not.
    """


@data.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--test", multiple=True, type=_FILE, help="Test file: is any of it in the others?")
@click.option(
    "--near", type=_SHARE, default=0.8, show_default=True, help="How alike near duplicates are."
)
@click.option("-n", "--limit", type=click.IntRange(0), default=20, show_default=True)
@source_options
@json_option
def check(
    files: tuple[Path, ...],
    test: tuple[Path, ...],
    near: float,
    limit: int,
    kind: str | None,
    source: Source,
    as_json: bool,
) -> int:
    """Find lines that are no rows, duplicates, leaks, labels that do not fit, personal data.

    The exit code is 3 where something keeps the data from being trained on. `--limit` bounds the
    lines shown of each; `--json` has them all.
    """
    from gptflow.errors import DataError
    from gptflow.training.data import checks

    if near == 0:
        raise click.UsageError("--near 0 would make all rows duplicates.")
    train = _read(files, kind, source)
    findings = checks.check(train, _read(test, kind, source) if test else None, near=near)
    if as_json:
        print_json(findings.as_dict())
    else:
        _show_findings(findings, limit)
    return 0 if findings.ok else DataError.exit_code


@data.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@source_options
@json_option
def stats(files: tuple[Path, ...], kind: str | None, source: Source, as_json: bool) -> int:
    """Count rows, labels, spans and turns; lengths, languages, groups and times."""
    from gptflow.training.data.statistics import describe

    reading = _read(files, kind, source)
    found = describe(reading.rows) | {"problems": len(reading.problems)}
    if as_json:
        print_json(found)
    else:
        print_table(("what", "value"), _flatten(found))
        _note_problems(reading)
    return PARTIAL if reading.problems else 0


@data.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--out", required=True, type=_FILE, help="Folder for train, dev and test.")
@click.option("--method", type=click.Choice(METHODS), default="stratified", show_default=True)
@click.option("--dev", type=_SHARE, default=0.1, show_default=True, help="Share of the rows.")
@click.option("--test", type=_SHARE, default=0.1, show_default=True, help="Share of the rows.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--to", type=click.Choice(FORMATS), help="Format to write.  [default: as read]")
@click.option("--skip-bad", is_flag=True, help="Leave lines out that are no rows, and name them.")
@source_options
@json_option
def split(
    files: tuple[Path, ...],
    out: Path,
    method: Any,
    dev: float,
    test: float,
    seed: int,
    to: Any,
    skip_bad: bool,
    kind: str | None,
    source: Source,
    as_json: bool,
) -> int:
    """Divide rows into train, dev and test. Duplicates and groups stay together.

    A temporal split puts the newest rows into the test.
    """
    from gptflow.training.data.duplicates import find_duplicates
    from gptflow.training.data.reading import format_of
    from gptflow.training.data.splits import split as divide
    from gptflow.training.data.writing import write

    reading = _read(files, kind, source)
    rows = _usable(reading, skip_bad)
    chosen = to or ("jsonl" if files[0].suffix == ".txt" else format_of(files[0], source))
    # By time, copies may part: a story told again tomorrow is what the model will see.
    duplicates = [] if method == "temporal" else find_duplicates(rows)
    parts = divide(rows, method=method, dev=dev, test=test, seed=seed, duplicates=duplicates).parts
    out.mkdir(parents=True, exist_ok=True)
    written = {name: out / f"{name}.{chosen}" for name, part in parts.items() if part}
    for name, path in written.items():
        write(path, parts[name], format=chosen)
    told = [
        {"part": name, "rows": len(parts[name]), "file": str(path)}
        for name, path in written.items()
    ]
    if as_json:
        print_json({"parts": told, "problems": [p.as_dict() for p in reading.problems]})
    else:
        print_table(("part", "rows", "file"), (list(row.values()) for row in told))
    return PARTIAL if reading.problems else 0


@data.command()
@click.argument("file", type=_FILE)
@click.argument("out", type=_FILE)
@click.option(
    "--to", type=click.Choice(FORMATS), help="Format to write.  [default: by OUT's suffix]"
)
@click.option("--to-scheme", type=click.Choice(SCHEMES), default="iob2", show_default=True)
@click.option("--mask-personal", is_flag=True, help="Write <email>, <card> ... in their places.")
@click.option("--skip-bad", is_flag=True, help="Leave lines out that are no rows, and name them.")
@source_options
@json_option
def convert(
    file: Path,
    out: Path,
    to: Any,
    to_scheme: Any,
    mask_personal: bool,
    skip_bad: bool,
    kind: str | None,
    source: Source,
    as_json: bool,
) -> int:
    """Write a file's rows in another format, another scheme of tags, or with other labels."""
    from gptflow.training.data.masking import masked
    from gptflow.training.data.writing import write

    reading = _read((file,), kind, source)
    rows: Sequence[Row] = _usable(reading, skip_bad)
    if mask_personal:
        rows = [masked(row) for row in rows]
    write(out, rows, format=to, scheme=to_scheme)
    if as_json:
        problems = [problem.as_dict() for problem in reading.problems]
        print_json({"rows": len(rows), "file": str(out), "problems": problems})
    else:
        click.echo(f"{len(rows)} rows are in {out}")
    return PARTIAL if reading.problems else 0


data.add_command(sample)


def _read(files: Sequence[Path], kind: Any, source: Source) -> Reading[Row]:
    from gptflow.training.data.reading import guess_kind, read_many

    return read_many(files, kind or guess_kind(files[0], source), source)


def _usable(reading: Reading[Row], skip_bad: bool) -> Sequence[Row]:
    """All rows, or those that are left with `--skip-bad`, the others named."""
    if not skip_bad or not reading.problems:
        return reading.require()
    _note_problems(reading)
    return type(reading)(reading.rows, (), reading.files).require()


def _note_problems(reading: Reading[Row]) -> None:
    for problem in reading.problems:
        note(f"not a row: {problem}")


def _show_findings(findings: Findings, limit: int) -> None:
    train, test = len(findings.train), len(findings.test)
    click.echo(f"{train} rows" + (f" and {test} test rows" if test else ""))
    _section("Lines that are no rows", [str(problem) for problem in findings.problems], limit)
    _section(
        "Errors",
        [
            " ".join(filter(None, (r.message, r.hint)))
            for r in findings.remarks
            if r.severity == "error"
        ],
        limit,
    )
    _section(
        "Warnings",
        [
            f"{r.origin}: {r.message}" if r.origin else r.message
            for r in findings.remarks
            if r.severity == "warning"
        ],
        limit,
    )
    rows = findings.train
    _section(
        "Duplicates",
        [
            f"{rows[pair.second].origin} repeats {rows[pair.first].origin}"
            + ("" if pair.kind == "exact" else f", {pair.similarity:.0%} alike")
            for pair in findings.duplicates
        ],
        limit,
    )
    _section(
        "Test rows that are like training rows",
        [
            f"{findings.test[leak.second].origin} repeats {rows[leak.first].origin}"
            + ("" if leak.kind == "exact" else f", {leak.similarity:.0%} alike")
            for leak in findings.leaks
        ],
        limit,
    )
    if findings.personal:
        kinds = ", ".join(f"{count} {kind}" for kind, count in findings.personal.items())
        _section(f"Personal data: {kinds}", [str(o) for o in findings.personal_rows], limit)
    click.echo("This will do." if findings.ok else "This will not do.")


def _section(title: str, lines: Sequence[str], limit: int) -> None:
    if not lines:
        return
    click.echo(f"\n{title} ({len(lines)})")
    for line in lines[:limit]:
        click.echo(f"  {line}")
    if len(lines) > limit:
        click.echo(f"  and {len(lines) - limit} more; `--json` has them all")


def _flatten(found: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            lines += _flatten(value, f"{before}{name}: ")
        else:
            lines.append((f"{before}{name}", value))
    return lines
