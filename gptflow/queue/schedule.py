"""Schedules: Celery's beat, sending each fire of a plugin's schedule once.

A fire is a job whose idempotency key is made of the schedule's name and the time that the
cron expression gives for it. Any number of beats may run: the second one gets the first one's
job. There is no file: what a beat needs to know is the clock.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import ParseException, crontab

from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import BrokerUnavailable, ConfigError, GPTFlowError
from gptflow.plugins import Registry, Schedule
from gptflow.queue.app import App, make_app
from gptflow.queue.transport import RedisTransport
from gptflow.queue.worker import set_up_logging
from gptflow.transport import Transport

logger = logging.getLogger(__name__)

_PATIENCE = 30.0
"""Seconds to go on trying to send a fire while Redis does not answer."""


def parse_cron(schedule: Schedule) -> crontab:
    """The schedule's cron expression, in UTC.

    Raises:
        ConfigError: it is not one.
    """
    try:
        return crontab.from_string(schedule.cron)
    except (ParseException, ValueError) as error:
        raise ConfigError(
            f"Schedule {schedule.name!r} has the cron expression {schedule.cron!r}: {error}.",
            hint="Five fields: minute, hour, day of month, month, day of week.",
        ) from None


def due_time(cron: crontab, after: datetime) -> datetime:
    """When the expression fires first after a moment; both are in UTC."""
    start, delta, _ = cron.remaining_delta(after)
    due: datetime = start + delta
    return due.astimezone(UTC).replace(second=0, microsecond=0)


def fire(transport: Transport, schedule: Schedule, due: datetime) -> str:
    """Submit one fire; submitting it again gives the same job.

    Returns:
        The job's id.
    """
    key = f"schedule:{schedule.name}:{due:%Y-%m-%dT%H:%MZ}"
    return transport.submit(Envelope(task=schedule.task, input=schedule.input, key=key))


class PluginScheduler(Scheduler):
    """A Celery scheduler that fires the schedules of the settings' plugins."""

    max_interval = 30

    def __init__(self, app: App, *args: Any, **options: Any) -> None:
        registry = Registry.load(app.settings.plugins)
        registry.require_all()
        self.schedules = registry.schedules
        self.transport: Transport = RedisTransport(app.settings)
        super().__init__(app, *args, **options)

    def setup_schedule(self) -> None:
        self.schedule = {
            name: ScheduleEntry(
                name=name, task=given.task, schedule=parse_cron(given), app=self.app
            )
            for name, given in self.schedules.items()
        }

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        schedule = self.schedules[entry.name]
        due = due_time(entry.schedule, entry.last_run_at)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                job_id = fire(self.transport, schedule, due)
            except BrokerUnavailable as error:
                logger.warning("Schedule %s: %s", schedule.name, error)
                if time.monotonic() > until:
                    logger.error("Schedule %s missed its fire of %s.", schedule.name, due)
                    return
                time.sleep(1)
            except GPTFlowError as error:
                logger.error("Schedule %s cannot be sent: %s", schedule.name, error)
                return
            else:
                logger.info("Schedule %s of %s is job %s.", schedule.name, due, job_id)
                return


def run_beat(settings: Settings, *, log_level: str = "INFO") -> int:
    """Fire the plugins' schedules until SIGTERM. Several may run: each fire is sent once.

    Returns:
        The process's exit code.

    Raises:
        BrokerUnavailable: Redis does not answer.
        ConfigError: there is no Redis URL, or a cron expression is malformed.
        PluginError: a plugin does not load.
    """
    app = make_app(settings)
    registry = Registry.load(settings.plugins)
    registry.require_all()
    RedisTransport(settings).ping()
    for schedule in registry.schedules.values():
        parse_cron(schedule)
    set_up_logging(log_level)
    beat = app.Beat(
        scheduler_cls="gptflow.queue.schedule:PluginScheduler", quiet=True, loglevel=log_level
    )

    def ready(**_: Any) -> None:
        logger.info("Ready: %d schedules.", len(registry.schedules))

    signals.beat_init.connect(ready)
    try:
        beat.run()
    except SystemExit as stop:  # how Celery's beat obeys SIGTERM
        return int(stop.code or 0)
    return 0
