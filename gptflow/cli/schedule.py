"""`gptflow schedule`: what runs when, what ran last, and letting it rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json, print_table
from gptflow.config import Settings
from gptflow.schedule import Schedule, iso
from gptflow.timetable import moments

if TYPE_CHECKING:
    from gptflow.queue.schedule_ledger import ScheduleLedger, ScheduleState
    from gptflow.queue.transport import RedisTransport

_UNREGISTERED = "Plugins register schedules; docs/schedules.md says how."


@click.group(short_help="List schedules, run them by hand, let them rest.")
def schedule() -> None:
    """List schedules, run them by hand, let them rest.

    Plugins register schedules, and `gptflow beat` fires them.
    """


@schedule.command("list")
@json_option
@click.pass_obj
def list_(session: Session, as_json: bool) -> None:
    """List schedules: when they fire, and what became of the last fire."""
    settings = session.settings()
    schedules = session.registry(settings, warn=True).schedules
    states: Mapping[str, ScheduleState] = {}
    if _has_queue(settings):
        with _transport(session) as transport:
            states = _ledger(transport).states(list(schedules))
    else:
        note("No Redis is configured: what has been fired is not known here.")
    now = datetime.now(UTC)
    rows = [_row(each, states.get(each.name), now) for each in schedules.values()]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "task", "when", "last_fire", "job", "state", "next", "paused")
    print_table(
        [column.replace("_", " ") for column in columns],
        (
            ["yes" if row[column] is True else row[column] or "" for column in columns]
            for row in rows
        ),
        empty=f"There are no schedules. {_UNREGISTERED}",
    )


@schedule.command()
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=5, show_default=True)
@json_option
@click.pass_obj
def next(session: Session, name: str, count: int, as_json: bool) -> None:
    """Show when a schedule fires next, paused or not."""
    found = _find(session, name)
    times = list(itertools.islice(moments(found.times, datetime.now(UTC)), count))
    rows = [{"time": iso(time), "local": time.astimezone(found.zone).isoformat()} for time in times]
    if as_json:
        print_json(rows)
    else:
        print_table(("UTC", found.timezone), ((row["time"], row["local"]) for row in rows))


@schedule.command()
@click.argument("name")
@json_option
@click.pass_obj
def run(session: Session, name: str, as_json: bool) -> None:
    """Fire a schedule now, paused or not, whatever else runs."""
    found = _find(session, name)
    session.registry(session.settings()).check_schedule(found)
    with _transport(session) as transport:
        now, _ = _ledger(transport).watch([])
        job_id = transport.submit(found.envelope(transport.settings.app, now))
    if as_json:
        print_json({"name": found.name, "fire": iso(now), "job": job_id})
    else:
        click.echo(job_id)
        note(f"`gptflow jobs result {job_id}` waits for its result.")


@schedule.command()
@click.argument("name")
@json_option
@click.pass_obj
def pause(session: Session, name: str, as_json: bool) -> None:
    """Let a schedule rest: it does not fire until it is resumed."""
    _pause(session, name, True, as_json)


@schedule.command()
@click.argument("name")
@json_option
@click.pass_obj
def resume(session: Session, name: str, as_json: bool) -> None:
    """Let a paused schedule go on; what it missed is not made up for."""
    _pause(session, name, False, as_json)


def _pause(session: Session, name: str, paused: bool, as_json: bool) -> None:
    found = _find(session, name)
    with _transport(session) as transport:
        changed = _ledger(transport).pause(found.name, paused)
    if as_json:
        print_json({"name": found.name, "paused": paused, "changed": changed})
        return
    now = "paused" if paused else "running"
    click.echo(f"Schedule {name} is {now}." if changed else f"Schedule {name} was {now} already.")


def _find(session: Session, name: str) -> Schedule:
    """The schedule of this name."""
    from gptflow.errors import InvalidInput
    from gptflow.suggestion import did_you_mean

    schedules = session.registry(session.settings(), warn=True).schedules
    if name in schedules:
        return schedules[name]
    raise InvalidInput(
        f"There is no schedule {name!r}.",
        hint=did_you_mean(name, schedules)
        or ("`gptflow schedule list` shows them." if schedules else _UNREGISTERED),
    )


def _has_queue(settings: Settings) -> bool:
    return settings.broker_url not in (None, "memory://")


@contextmanager
def _transport(session: Session) -> Iterator[RedisTransport]:
    from gptflow.queue.transport import RedisTransport

    with session.client(needs_queue=True) as client:
        transport = client.transport
        assert isinstance(transport, RedisTransport)
        yield transport


def _ledger(transport: RedisTransport) -> ScheduleLedger:
    from gptflow.queue.schedule_ledger import ScheduleLedger

    return ScheduleLedger(transport.store)


def _row(
    each: Schedule,
    state: ScheduleState | None,
    now: datetime,
) -> dict[str, Any]:
    paused = state is not None and state.paused is not None
    return {
        "name": each.name,
        "task": each.task,
        "when": each.when,
        "cron": each.cron,
        "every": each.every,
        "timezone": each.timezone,
        "policy": each.policy,
        "catchup": each.catchup,
        "overlap": each.overlap,
        "job_class": each.job_class,
        "tenant": each.tenant,
        "last_fire": iso(state.fire) if state and state.fire else None,
        "job": state.job if state else None,
        "state": state.job_state if state else None,
        "fired": state.fired if state else None,
        "skipped": state.skipped if state else None,
        "next": None if paused else iso(each.times.next(now)),
        "paused": paused,
    }
