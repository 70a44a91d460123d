"""Sentiment, topics and entities of financial posts, and alerts on surges of bad news."""

from __future__ import annotations

from typing import Any

from gptflow import hookimpl


@hookimpl
def register_tasks(register: Any) -> None:
    from gptflow_sentiment_monitoring.classify import ClassifyPost
    from gptflow_sentiment_monitoring.entities import FindFilingEntities, FindPostEntities
    from gptflow_sentiment_monitoring.monitor import RunMonitor

    register(ClassifyPost())
    register(FindPostEntities())
    register(FindFilingEntities())
    register(RunMonitor())


@hookimpl
def register_sources(register: Any) -> None:
    from gptflow_sentiment_monitoring.sample import read_sample

    register("sample", read_sample)


@hookimpl
def register_schedules(register: Any) -> None:
    """One schedule for each monitor of `monitors.toml` that has a cron expression."""
    from gptflow.monitoring import monitors

    for monitor in monitors.load().values():
        if monitor.cron is not None:
            register(
                monitor.name,
                task="sentiment.monitor",
                cron=monitor.cron,
                input={"name": monitor.name},
            )
