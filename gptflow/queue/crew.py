"""Crew: everything in a worker process that is not Celery's, put together.

The engine and its event loop, the dispatcher that runs messages on them, the feeder that rings
for jobs, and the threads that show the worker to be alive.
"""

from __future__ import annotations

import dataclasses
import os
import pkgutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from gptflow.config import Settings
from gptflow.errors import GPTFlowError
from gptflow.plugins import Registry
from gptflow.queue.adapters import AdapterFollower
from gptflow.queue.dispatcher import Dispatcher
from gptflow.queue.feeder import Feeder
from gptflow.queue.follow import Follower
from gptflow.queue.health import require_keeping
from gptflow.queue.instruments import Instruments
from gptflow.queue.presence import Presence
from gptflow.queue.probes import Pulse, Vitals
from gptflow.queue.redis_ledger import RedisLedger
from gptflow.queue.runtime import Runtime
from gptflow.queue.spans import Spans
from gptflow.queue.transport import RedisTransport
from gptflow.queue.watchdog import Watchdog
from gptflow.request import Engine
from gptflow.transport import WorkerRecord

LOADER = "gptflow.queue.engine_factory:load_engine"

_SHOWN = ("slots", "slots_used", "kv_tokens", "kv_tokens_limit", "tokens_per_second")
"""Of the engine's counters, those that are shown first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What a worker is made of that has no model and serves no plugins.

    Attributes:
        engine: closed when the worker stops.
    """

    engine: Engine
    registry: Registry


class Crew:
    """A worker's parts, between its start and its stop.

    Args:
        parts: in place of the settings' model and plugins.
        nodename: Celery's name of the worker.
        concurrency: messages in flight at most.
        run_alone: runs one job with nothing beside it.
        idle: whether no message is in flight.
        give_up: called when the engine has stopped for good.

    Raises:
        GPTFlowError: the worker cannot start: no Redis, no model, or a broken plugin.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        parts: Parts | None = None,
        nodename: str,
        concurrency: int,
        run_alone: Callable[[str], Future[None]],
        idle: Callable[[], bool],
        give_up: Callable[[], None],
    ) -> None:
        registry = Registry.load(settings.plugins) if parts is None else parts.registry
        registry.require_all()
        self._transport = RedisTransport(settings)
        store = self._transport.store
        require_keeping(store)
        self.ledger = RedisLedger(store, lease=settings.lease, dead_ttl=settings.dead_ttl)
        self.ledger.set_policy(settings)
        spans = Spans.of(settings, registry)
        self._instruments = Instruments.of(settings, store)
        load = pkgutil.resolve_name(LOADER)
        self.engine: Engine = load(settings) if parts is None else parts.engine
        self._adapters = AdapterFollower.of(self.engine, settings, registry)
        self._adapters.refresh()
        self.stopping = False
        most = settings.in_flight or 4 * settings.slots
        self.record = _describe(self.engine, registry, nodename)
        self.runtime = Runtime(
            self.engine,
            registry,
            self._transport,
            settings=settings,
            concurrency=concurrency,
            most=most,
            ended=self._on_end,
            spans=spans,
        )
        try:
            self.runtime.setup()
        except GPTFlowError:
            self.runtime.close()
            self.engine.close()
            raise
        follower = Follower(self.ledger, self._transport, settings)
        self.dispatcher = Dispatcher(
            self.runtime,
            self.ledger,
            settings=settings,
            name=self.record.name,
            follower=follower,
        )
        self.feeder = Feeder(
            self.ledger,
            self.record.name,
            room=lambda: self.room,
            reserve=most // 8,
            idle=idle,
            alone=self.runtime.alone,
            run_alone=run_alone,
            hold=settings.lease,
        )
        self._presence = Presence(
            store,
            self.ledger,
            self.dispatcher,
            self.runtime,
            self.record,
            lease=settings.lease,
            wake=self.feeder.wake,
            on_engine_stopped=give_up,
            go_on=follower.sweep,
        )
        self._watchdog = Watchdog(self.engine.stats, seconds=settings.watchdog)
        if self._instruments is not None:
            pulse = Pulse(self.runtime.call_later)
            vitals = Vitals(
                healthy=lambda: self.engine.healthy,
                stalled=lambda: self._watchdog.stalled,
                pulse=lambda: pulse.age,
                silence=lambda: time.monotonic() - self._presence.contact,
                draining=lambda: self.stopping,
            )
            self._instruments.attach(vitals, self.describe, self.dispatcher.tallies)

    def start(self) -> None:
        """Say that the worker is ready, and take jobs."""
        self._adapters.start()
        self._presence.start()
        self._watchdog.start()
        self.feeder.start()

    @property
    def room(self) -> int:
        """How many items may be taken now."""
        if self.stopping or self.runtime.alone.is_set() or not self.engine.healthy:
            return 0
        return self.runtime.room

    def save_log(self) -> None:
        """Keep what this worker has logged, for when it dies of what comes next."""
        self._presence.save_log()

    def take_no_more(self) -> None:
        """Take no job any more; what runs goes on."""
        self.stopping = True
        self.feeder.stop()

    def close(self) -> None:
        """Give everything back. Every message must have ended."""
        self._watchdog.stop()
        self._adapters.stop()
        self.feeder.stop()
        self.feeder.join()
        self.dispatcher.close()
        self.runtime.close()
        self._presence.stop()
        self.ledger.close()
        self.engine.close()
        if self._instruments is not None:
            self._instruments.close()
        self._transport.close()

    def describe(self) -> dict[str, Any]:
        """What `celery inspect stats` and the metrics show of it."""
        tallies = self.dispatcher.tallies.totals()
        ended = sum(tallies.values())
        stats = dict(self.engine.stats())
        return {
            "messages": self.runtime.messages,
            "in_flight": self.runtime.in_flight,
            "peak_in_flight": self.runtime.peak_in_flight,
            "room": self.room,
            "leases": len(self.dispatcher.claims()),
            "jobs": tallies,
            "round_trips": self.ledger.round_trips,
            "round_trips_per_job": round(self.ledger.round_trips / ended, 3) if ended else None,
            "healthy": self.engine.healthy,
            "stalled": self._watchdog.stalled,
            "worker": self.record.name,
            "model": self.record.model,
            "plugins": list(self.record.plugins),
            **{name: stats[name] for name in _SHOWN if name in stats},
            "engine": stats,
        }

    def _on_end(self) -> None:
        self.feeder.wake()


def _describe(engine: Engine, registry: Registry, nodename: str) -> WorkerRecord:
    model = engine.model
    return WorkerRecord(
        # A restarted worker has its predecessor's node name and none of its jobs.
        name=f"{nodename}.{uuid.uuid4().hex[:6]}",
        pid=os.getpid(),
        model=model.id,
        plugins=tuple(registry.plugins),
        started=time.time(),
        stats=dict(engine.stats()),
    )
