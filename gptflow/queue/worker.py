"""Runs a Celery worker in this process."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import TYPE_CHECKING, Any, Literal

from celery import signals
from celery.exceptions import SecurityWarning

from gptflow.config import Settings
from gptflow.queue.app import make_app

if TYPE_CHECKING:
    from gptflow.queue.crew import Parts

Profile = Literal["gpu", "cpu"]

_DEVICES: dict[Profile, str] = {"gpu": "cuda", "cpu": "cpu"}
_FORMAT = "%(asctime)s %(levelname)-8s %(message)s"

# One line for each message received and one for each one done is too much of a log.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "celery.apps.worker", "kombu", "httpx")


def run_worker(
    settings: Settings,
    *,
    profile: Profile | None = None,
    log_level: str = "INFO",
    parts: Parts | None = None,
) -> int:
    """Serve jobs until SIGTERM, then finish what runs and return.

    A second SIGTERM changes nothing; SIGQUIT stops at once.

    Args:
        profile: on which device, whatever the settings say; by default as they say.
        log_level: of the lines on standard error. `DEBUG` shows each message.
        parts: in place of the settings' model and plugins.

    Returns:
        The process's exit code: 0, or that of the error that kept the worker from starting.

    Raises:
        ConfigError: there is no Redis URL.
    """
    app = make_app(with_profile(settings, profile), parts=parts)
    # It warns root of pickled messages; none is ever read.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    set_up_logging(log_level)
    worker = app.Worker(
        hostname=f"gptflow-{os.getpid()}@{socket.gethostname()}",
        concurrency=settings.concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel=log_level,
    )
    worker.start()
    return int(worker.exitcode or 0)


def with_profile(settings: Settings, profile: Profile | None) -> Settings:
    """The settings for a profile, which beats the device that they name; None changes nothing."""
    if profile is None:
        return settings
    return settings.model_copy(update={"device": _DEVICES[profile]})


def set_up_logging(level: str) -> None:
    """Log to standard error in one format, Celery's lines included."""
    logging.basicConfig(level=level, format=_FORMAT, datefmt="%H:%M:%S", force=True)
    for handler in logging.root.handlers:
        handler.setLevel(level)  # some libraries open their own loggers wider than the root
    if level != "DEBUG":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
    # Celery leaves logging alone where somebody answers this signal.
    signals.setup_logging.connect(_leave_alone, weak=False)


def _leave_alone(**_: Any) -> None:
    pass
