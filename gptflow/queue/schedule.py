"""Schedules: Celery's beat, sending each fire of the plugins' schedules once.

Any number of beats may run, and none of them leads: each tries every fire, and the script that
takes one takes it once. What they must remember is in the ledger's Redis; there is no file.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery import signals
from celery.beat import Scheduler

from gptflow.config import Settings
from gptflow.envelope import Envelope
from gptflow.errors import BrokerUnavailable, InvalidInput
from gptflow.plugins import Registry
from gptflow.queue.app import App, make_app
from gptflow.queue.fires import Drop, Place, Wait, Watch, next_step, write_mark
from gptflow.queue.payload import Packed
from gptflow.queue.schedule_ledger import ScheduleLedger, Settled
from gptflow.queue.transport import RedisTransport
from gptflow.queue.worker import set_up_logging
from gptflow.schedule import Schedule, iso

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
_RELOOK = 30.0
"""Seconds after which to ask for the server's time again."""
_HELD = timedelta(seconds=0.5)
"""How soon to look again whether the job of an earlier fire has ended."""
_RECONNECT = 0.5
_BURST = 100
"""Fires of one schedule to send before the others have their turn."""


@dataclasses.dataclass(slots=True)
class _Due:
    """When a schedule wants attention, by the server's clock; None at once."""

    at: datetime | None = None
    told: str = ""


class Beat:
    """Sends the fires of some schedules, round by round.

    Args:
        pack: makes an envelope ready to be sent.
        clock: seconds that only go forward; the server says what time it is.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        ledger: ScheduleLedger,
        pack: Callable[[Envelope], Packed],
        app: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedules = schedules
        self._ledger = ledger
        self._pack = pack
        self._app = app
        self._clock = clock
        self._started = self._asked = clock()
        self._time: datetime | None = None  # the server's, when it was asked
        self._watch: Watch | None = None
        self._due = {name: _Due() for name in schedules}
        self._away = False

    def round(self) -> float:
        """Send what is due. Returns after how many seconds to come again."""
        try:
            wait = self._round()
        except BrokerUnavailable as error:
            if not self._away:
                logger.warning("%s Fires wait until it answers.", error.message)
            self._away = True
            return _RECONNECT
        if self._away:
            logger.info("Redis answers again.")
            self._away = False
        return wait

    def _round(self) -> float:
        due = [self._schedules[name] for name, due in self._due.items() if self._is_due(due)]
        if due or self._time is None or self._clock() - self._asked >= _RELOOK:
            asked = self._clock()
            now, places = self._ledger.watch(due, declare=self._watch is None)
            self._asked, self._time = asked, now
            if self._watch is None:
                running = timedelta(seconds=asked - self._started)
                self._watch = Watch(since=now - running, informed=now)
            for schedule, place in zip(due, places, strict=True):
                self._due[schedule.name].at = self._attend(schedule, place, self._watch, now)
        moment = self._now()
        waits = [(due.at - moment).total_seconds() for due in self._due.values() if due.at]
        return max(0.0, min(_LONGEST_WAIT, *waits)) if waits else _LONGEST_WAIT

    def _is_due(self, due: _Due) -> bool:
        return due.at is None or due.at <= self._now()

    def _now(self) -> datetime:
        """About what the server's clock shows."""
        assert self._time is not None
        return self._time + timedelta(seconds=self._clock() - self._asked)

    def _attend(self, schedule: Schedule, place: Place, watch: Watch, now: datetime) -> datetime:
        """Send a schedule's fires. Returns when to come back to it."""
        for _ in range(_BURST):
            step = next_step(schedule, place, watch, now)
            if isinstance(step, Wait):
                return step.until
            until, packed = (
                (step.until, None) if isinstance(step, Drop) else self._packed(schedule, step.time)
            )
            settled = self._ledger.settle(schedule, place.mark, until, packed)
            self._tell(schedule, place, until, settled, now)
            match settled.verdict:
                case "moved" | "paused":
                    return now
                case "held":
                    return now + _HELD
                case "full" | "memory":
                    return now + timedelta(seconds=min(float(settled.more), _LONGEST_WAIT))
            place = dataclasses.replace(place, mark=write_mark(until))
        return now

    def _packed(self, schedule: Schedule, fire: datetime) -> tuple[datetime, Packed | None]:
        try:
            return fire, self._pack(schedule.envelope(self._app, fire))
        except InvalidInput as error:
            logger.error("Schedule %s cannot be sent: %s", schedule.name, error)
            return fire, None

    def _tell(
        self, schedule: Schedule, place: Place, until: datetime, settled: Settled, now: datetime
    ) -> None:
        """Log what came of a fire; what stays as it is, once."""
        name, fire, due = schedule.name, iso(until), self._due[schedule.name]
        told = f"{settled.verdict} {settled.what}"
        again, due.told = due.told == told, told
        match settled.verdict:
            case "accepted":
                late = (now - until).total_seconds()
                lateness = f", {late:.1f} s late" if late >= 1 else ""
                instead = f", in place of job {settled.more}" if settled.more else ""
                logger.info(
                    "Schedule %s: fire %s is job %s%s%s.",
                    *(name, fire, settled.what, instead, lateness),
                )
            case "known":
                logger.info("Schedule %s: fire %s was job %s already.", name, fire, settled.what)
            case "skipped":
                logger.info(
                    "Schedule %s: fire %s is skipped: job %s of an earlier one has not ended.",
                    *(name, fire, settled.what),
                )
            case "held" if not again:
                logger.info("Schedule %s: fire %s waits for job %s.", name, fire, settled.what)
            case "full" | "memory" if not again:
                logger.warning("Schedule %s: fire %s waits: the queue is full.", name, fire)
            case "dropped":
                logger.warning(
                    "Schedule %s: fires from %s to %s are not made up for.",
                    *(name, iso(place.settled), fire),
                )
            case "invalid":
                logger.error("Schedule %s: fire %s has a malformed %s.", name, fire, settled.what)


class PluginScheduler(Scheduler):
    """A Celery scheduler that fires the schedules of the settings' plugins."""

    max_interval = int(_LONGEST_WAIT)

    def __init__(self, app: App, *args: Any, **options: Any) -> None:
        registry = load_schedules(app.settings)
        transport = RedisTransport(app.settings)
        self.beat = Beat(
            registry.schedules,
            ScheduleLedger(transport.store),
            transport._pack,
            app.settings.app,
        )
        super().__init__(app, *args, **options)

    def setup_schedule(self) -> None:
        """Celery's own entries: there are none, the beat has the plugins'."""

    def tick(self, *_: Any, **__: Any) -> float:
        return self.beat.round()


def load_schedules(settings: Settings) -> Registry:
    """The plugins, whose schedules are found to be good.

    Raises:
        PluginError: a plugin does not load.
        ScheduleError: a schedule will not do.
    """
    registry = Registry.load(settings.plugins)
    registry.require_all()
    for schedule in registry.schedules.values():
        registry.check_schedule(schedule)
    return registry


def run_beat(settings: Settings, *, log_level: str = "INFO") -> int:
    """Fire the plugins' schedules until SIGTERM. Several may run: each fire is sent once.

    Returns:
        The process's exit code.

    Raises:
        BrokerUnavailable: Redis does not answer.
        ConfigError: there is no Redis URL.
        PluginError: a plugin does not load.
        ScheduleError: a schedule will not do.
    """
    # Nothing has to be finished at the end: a fire is one step in Redis.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        app = make_app(settings)
        schedules = load_schedules(settings).schedules
        RedisTransport(settings).ping()
        set_up_logging(log_level)
        beat = app.Beat(
            scheduler_cls="gptflow.queue.schedule:PluginScheduler", quiet=True, loglevel=log_level
        )

        def ready(**_: Any) -> None:
            logger.info("Ready: %d schedules.", len(schedules))

        signals.beat_init.connect(ready)
        beat.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    logger.info("Stopped.")
    return 0


def _stop(*_: object) -> None:
    raise SystemExit(0)
