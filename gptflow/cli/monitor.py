"""`gptflow monitor`: watch feeds for surges of bad news."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import (
    SECONDS,
    Number,
    Session,
    exit_code,
    json_option,
    local_option,
    model_option,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gptflow.config import Settings
    from gptflow.monitoring.monitors import Monitor
    from gptflow.monitoring.store import Store

TASK = "sentiment.monitor"


@click.group(short_help="Watch feeds for surges of bad news.")
def monitor() -> None:
    """Watch feeds for surges of bad news.

    Monitors are declared in `monitors.toml`; `gptflow beat` runs those that have a cron
    expression, and `gptflow monitor run` any of them once.
    """


@monitor.command()
@click.argument("name", required=False)
@click.option(
    "--source",
    metavar="FILE",
    help="Read this file (or a plugin's feed, such as sample:market) in place of a declared one.",
)
@click.option("--now", metavar="TIME", help="Leave posts from after this time; ISO 8601 or Unix.")
@click.option("--fire", metavar="ID", help="Name of this run; the same name never runs twice.")
@click.option("--timeout", type=SECONDS, default=600.0, show_default=True, help="Seconds to wait.")
@local_option
@model_option
@json_option
@click.pass_obj
def run(
    session: Session,
    name: str | None,
    source: str | None,
    now: str | None,
    fire: str | None,
    timeout: float,
    local: bool,
    model: str | None,
    as_json: bool,
) -> int:
    """Run a monitor once: read, classify, count, and alert.

    NAME is a declared monitor. With --source it may be any name; a run of the same name later
    goes on where this one ended.
    """
    given: dict[str, Any] = {"name": name or _name_of(source)}
    if source is not None:
        given["rows"] = _rows(session, source)
    given |= {key: value for key, value in {"now": now, "fire": fire}.items() if value is not None}
    with session.client(local=local, model=model) as client:
        result = client.submit(TASK, given, job_class="interactive").wait(timeout)
    if as_json:
        print_json(result.as_dict())
        return exit_code(result)
    _print_report(result.unwrap())
    for warning in result.warnings:
        note(f"warning: {warning}")
    return 0


@monitor.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List monitors: those declared, and those that have run."""
    from gptflow.monitoring import monitors

    settings = session.settings()
    declared = monitors.load(monitors.default_path(settings))
    rows = [_summary(name, declared.get(name), _store(settings)) for name in _names(settings)]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "state", "cron", "source", "last run", "history", "open alerts")
    print_table(
        columns,
        ([row[column.replace(" ", "_")] for column in columns] for row in rows),
        empty=f"No monitor is declared in {monitors.default_path(settings)}, and none has run. "
        "`gptflow monitor run --source FILE` runs one.",
    )


@monitor.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@click.pass_obj
def alerts(session: Session, name: str | None, limit: int, as_json: bool) -> None:
    """List alerts, the newest first; of one monitor or of all."""
    with _store(session.settings()).read() as view:
        found = view.alerts(_known(session.settings(), name) if name else None, limit=limit)
    if as_json:
        print_json(found)
    elif found:
        _print_alerts(found)
    else:
        note(f"No alerts. `gptflow monitor run {name or 'NAME'}` looks for some.")


@monitor.command()
@click.argument("name")
@click.option("--topic", default="*", show_default=True, help="One topic, or * for all.")
@click.option("--entity", default="", help="One ticker.")
@click.option("--hours", type=click.IntRange(1, 1680), default=72, show_default=True)
@json_option
@click.pass_obj
def series(session: Session, name: str, topic: str, entity: str, hours: int, as_json: bool) -> None:
    """Show how many posts of each mood a monitor counted, bucket by bucket."""
    from gptflow.monitoring.alerts import iso
    from gptflow.monitoring.series import Key, wilson

    key = Key(topic, entity)
    with _store(session.settings()).read() as view:
        state = view.state(_known(session.settings(), name))
        since = int((state.newest or 0) - hours * 3600)
        points = view.series(name, since=since, key=key).get(key, {})
    rows = [
        {
            "start": iso(start),
            **dataclasses.asdict(point),
            "share": point.negative / point.total if point.total else None,
            "share_interval": wilson(point.negative, point.total),
        }
        for start, point in sorted(points.items())
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("bucket", "posts", "stories", "negative", "positive", "negative share (95 %)"),
        (
            (
                row["start"],
                row["raw"],
                row["total"],
                row["negative"],
                row["positive"],
                "{:.0%} to {:.0%}".format(*row["share_interval"]),
            )
            for row in rows
        ),
        empty=f"Monitor {name} counted nothing here in these hours. "
        f"`gptflow monitor run {name}` reads its feed.",
    )


@monitor.command()
@click.argument("name")
@click.pass_obj
def pause(session: Session, name: str) -> None:
    """Let a monitor rest: its runs do nothing until it is resumed."""
    _set_paused(session, name, True)


@monitor.command()
@click.argument("name")
@click.pass_obj
def resume(session: Session, name: str) -> None:
    """Let a paused monitor go on."""
    _set_paused(session, name, False)


@monitor.command()
@click.option(
    "--base",
    type=Number("posts", least=0, above=True),
    multiple=True,
    help="Negatives in a mean hour.  [3 10 40]",
)
@click.option(
    "--phi",
    type=Number("ratio", least=1),
    multiple=True,
    help="Variance over mean of counts.  [1 3]",
)
@click.option(
    "--surge",
    type=Number("factor", least=1),
    multiple=True,
    help="Factor of the surge, 1 for none.  [1 3 5]",
)
@click.option("--hours", type=click.IntRange(1, 48), multiple=True, help="Of the surge.  [6]")
@click.option("--series", type=click.IntRange(2, 1000), default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def simulate(
    session: Session,
    base: Sequence[float],
    phi: Sequence[float],
    surge: Sequence[float],
    hours: Sequence[int],
    series: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure the detector on synthetic feeds, beside a flat threshold and a dummy.

    Each setting is a number of hourly series with a day and a week in them: eight weeks of
    history, two to judge, and one surge. The detector is calibrated on quiet ones first.
    """
    from gptflow.cli.session import progress
    from gptflow.monitoring.simulation import grid
    from gptflow.monitoring.simulation import simulate as scores_of

    cells = grid(base or (3, 10, 40), phi or (1, 3), surge or (1, 3, 5), hours or (6,))
    scores = []
    with progress("Settings", len(cells), unit="settings") as update:
        for score in scores_of(cells, series=series, seed=seed):
            scores.append(score)
            update(len(scores) // 3)
    if as_json:
        print_json([score.as_dict() for score in scores])
        return
    print_table(
        ("base/h", "phi", "surge", "hours", "detector", "false alarms/week", "recall", "delay h"),
        (
            (
                f"{score.cell.base:g}",
                f"{score.cell.phi:g}",
                "none" if score.cell.surge <= 1 else f"{score.cell.surge:g}x",
                "" if score.cell.surge <= 1 else score.cell.hours,
                score.detector,
                f"{score.false_alarms:.2f}",
                "" if score.recall is None else f"{score.recall:.2f}",
                score.delay,
            )
            for score in scores
        ),
    )


def _rows(session: Session, source: str) -> list[dict[str, Any]]:
    """Read a feed here, with the rights of who asks; workers read declared feeds only."""
    from gptflow.monitoring import sources

    readers = session.registry(session.settings()).sources
    scheme, rest = sources.split(source)
    if scheme in (None, *sources.BUILT_IN) and not Path(rest).is_file():
        raise click.BadParameter(f"There is no file {rest!r}.", param_hint="'--source'")
    found = sources.rows(source, readers=readers, roots=[Path(rest).resolve().parent])
    return [dict(row) for row in found]


def _name_of(source: str | None) -> str:
    import re

    if source is None:
        raise click.UsageError("Name a monitor, or give --source FILE.")
    stem = Path(source.rpartition(":")[2]).stem.lower()
    return re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:63] or "feed"


def _store(settings: Settings) -> Store:
    from gptflow.monitoring.store import Store

    return Store.in_folder(settings.data_dir)


def _names(settings: Settings) -> list[str]:
    from gptflow.monitoring import monitors

    with _store(settings).read() as view:
        return sorted({*monitors.load(monitors.default_path(settings)), *view.names()})


def _known(settings: Settings, name: str) -> str:
    """The name, if there is such a monitor."""
    from gptflow.errors import InvalidInput
    from gptflow.suggestion import did_you_mean

    names = _names(settings)
    if name in names:
        return name
    raise InvalidInput(
        f"There is no monitor {name!r}.",
        hint=did_you_mean(name, names) or "`gptflow monitor list` shows them.",
    )


def _set_paused(session: Session, name: str, paused: bool) -> None:
    settings = session.settings()
    _known(settings, name)
    with _store(settings).write() as changes:
        changed = changes.pause(name, paused)
    now = "paused" if paused else "running"
    click.echo(f"Monitor {name} is {now}." if changed else f"Monitor {name} was {now} already.")


def _summary(name: str, declared: Monitor | None, store: Store) -> dict[str, Any]:
    with store.read() as view:
        state = view.state(name)
        runs = view.runs(name, limit=1)
        open_alerts = len(view.open_alerts(name))
    return {
        "name": name,
        "state": "paused" if state.paused else "running" if declared else "not declared",
        "cron": declared.cron if declared else None,
        "source": declared.source if declared else None,
        "last_run": _ago(runs[0]["started"]) if runs else None,
        "history": f"{state.history_days:.1f} days",
        "open_alerts": open_alerts,
    }


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_report(report: Mapping[str, Any]) -> None:
    columns = ("monitor", "status", "read", "new", "duplicates", "bad_rows", "classified", "failed")
    if report["old"]:
        note(f"Left out {report['old']} posts from more than ten weeks before the newest.")
    print_table(
        (*(column.replace("_", " ") for column in columns), "points", "history"),
        [(*(report[name] for name in columns), report["points"], _days(report))],
    )
    for row in report["bad"]:
        note(f"line {row['line']}: {row['reason']}")
    if report["repeated"]:
        note(f"Fire {report['fire']!r} has run before; this is its report.")
    if report["alerts"]:
        _print_alerts(report["alerts"])
    else:
        click.echo("No alerts.")


def _days(report: Mapping[str, Any]) -> str:
    return f"{report['history_days']:.1f} days"


def _print_alerts(found: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ("alert", "level", "status", "topic", "window", "negative", "expected", "ratio", "rule"),
        (
            (
                alert["alert_id"],
                alert["level"],
                alert["status"],
                alert["entity"] or alert["topic"],
                f"{alert['window']['from']} to {alert['window']['until']}",
                f"{alert['observed']['negative']} of {alert['observed']['total']}",
                f"{alert['expected']['negative']:.1f}",
                f"{alert['ratio']:.1f}x",
                alert["rule"],
            )
            for alert in found
        ),
    )
    for alert in found:
        for example in alert["examples"]:
            click.echo(
                f"  {alert['alert_id'][:12]}  {example['p_negative']:.2f}  {example['text']}"
            )
