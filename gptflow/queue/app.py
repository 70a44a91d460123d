"""The Celery application: JSON only, one task, three queues, nothing that Redis cannot keep."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.exceptions import Ignore
from kombu import Exchange, Queue

from gptflow.config import Settings
from gptflow.errors import ConfigError, GPTFlowError, JobFailed
from gptflow.queue.connection import for_kombu, tls_options
from gptflow.queue.keys import CLASSES, Keys, queue_name
from gptflow.queue.message import TASK
from gptflow.queue.run_task import RunTask
from gptflow.queue.transport import RedisTransport
from gptflow.result import Result

if TYPE_CHECKING:
    from gptflow.queue.crew import Parts
    from gptflow.queue.pool import EnginePool


class App(Celery):
    """A Celery application with the settings that it was made from.

    Args:
        parts: what its worker is made of, in place of the settings' model and plugins.

    Attributes:
        engine_pool: what runs the task in this process; None in a process that does not work.
    """

    amqp_cls = "gptflow.queue.broker:BrokerAMQP"
    backend_cls = "gptflow.queue.backend:LedgerBackend"
    control_cls = "gptflow.queue.revoking:LedgerControl"

    def __init__(self, settings: Settings, *, parts: Parts | None = None, **options: Any) -> None:
        self.settings = settings
        self.parts = parts
        self.engine_pool: EnginePool | None = None
        self._transport: RedisTransport | None = None
        self._opening = threading.Lock()
        super().__init__("gptflow", **options)

    @property
    def transport(self) -> RedisTransport:
        """The ledger, as callers use it."""
        with self._opening:
            if self._transport is None:
                self._transport = RedisTransport(self.settings)
            return self._transport

    def close(self) -> None:
        """Give back connections."""
        with self._opening:
            if self._transport is not None:
                self._transport.close()
                self._transport = None
        super().close()


def make_app(settings: Settings, *, parts: Parts | None = None) -> App:
    """The application of these settings.

    Args:
        parts: see `App`.

    Raises:
        ConfigError: there is no Redis URL, or it is not one of a server.
    """
    url = settings.broker_url
    if url is None or url.startswith("memory:"):
        raise ConfigError(
            "Workers and the scheduler need a Redis server.",
            hint="Set GPTFLOW_REDIS_URL, or start everything with `gptflow up`.",
        )
    app = App(settings, parts=parts, broker=for_kombu(url), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        # Results are in the records; an early acknowledgement is in order because whether a
        # job still has to be run is there, too.
        task_ignore_result=True,
        result_backend_thread_safe=True,
        task_acks_late=False,
        task_queues=[_queue(queue_name(job_class)) for job_class in CLASSES],
        task_default_queue=queue_name("standard"),
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_concurrency=settings.concurrency,
        worker_pool="gptflow.queue.pool:EnginePool",
        worker_consumer="gptflow.queue.consumer:DiscreetConsumer",
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        control_queue_expires=60,
        enable_utc=True,
        timezone="UTC",
        broker_connection_timeout=2,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": Keys(settings.app).prefix,
            # The queues of the classes are read in the order in which they are declared.
            "queue_order_strategy": "priority",
            "priority_steps": [0],
            # What is taken is acknowledged at once, so only the dead leave something behind.
            "visibility_timeout": 60,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "health_check_interval": 5,
            # A worker that is told to stop waits for as long where the server is silent.
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "max_message": 2 * settings.max_payload + (1 << 16),
        },
    )
    if tls := tls_options(settings):
        app.conf.broker_use_ssl = tls
    app.steps["consumer"].add("gptflow.queue.consumer:Gate")
    app.task(
        name=TASK, bind=True, shared=False, base=RunTask, throws=(GPTFlowError,), ignore_result=True
    )(_run)
    return app


def _queue(name: str) -> Queue:
    # With Celery's default, one exchange for all, a message would go to every queue.
    return Queue(name, Exchange(name), routing_key=name)


def _run(self: Any, message: Any, signature: Any = None) -> None:
    """Run one job. A failure is recorded already; raising it shows it to Celery's tools.

    Args:
        message: the id of a job in the ledger, or an envelope that has no record yet: the object,
            or its JSON, where it is signed.
        signature: of the envelope.
    """
    app: App = self.app
    if app.engine_pool is None:
        raise ConfigError(
            "This Celery worker has no engine.",
            hint="Start it with `gptflow worker`, or with the pool that the application names.",
        )
    result, stopped = app.engine_pool.run_here(message, signature)
    if stopped:
        raise Ignore  # Celery knows already, and its record of why must stand
    if result is not None and not result.ok:
        raise _error_of(result)


def _error_of(result: Result) -> GPTFlowError:
    """An error that names the job's and quotes nothing of the job."""
    code = result.error.code if result.error else JobFailed.code
    return JobFailed(f"{result.state}: {code}")
