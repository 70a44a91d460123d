"""Catalogue: every metric that a process of GPTFlow shows, with what it means.

Labels have few values: plugins, classes, outcomes, error codes. Tenants and jobs are in none.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A metric. A counter's name ends in `_total`, a histogram's in its unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"gptflow_{name}_total", "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"gptflow_{name}", "gauge", help, labels)


def _histogram(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"gptflow_{name}_seconds", "histogram", help, labels)


_JOB = ("plugin", "class")
_BUILD = ("version", "app", "model", "dtype", "device")

WORKER = (
    _gauge("build_info", "1, with what runs here.", *_BUILD),
    _counter("jobs", "Jobs and rows that ended here.", *_JOB, "outcome"),
    _histogram("job_queue", "From submitting to the first start; of batches, by message.", *_JOB),
    _histogram("job_run", "Running a job or a row.", *_JOB),
    _gauge("jobs_in_flight", "Jobs and rows that run now."),
    _gauge("messages_in_flight", "Messages that run now; one of a batch holds many rows."),
    _gauge("room_items", "Items that this worker would take now; 0 while it drains."),
    _gauge("leases_held", "Claims that this worker renews."),
    _counter("ledger_round_trips", "Calls of the ledger's scripts."),
    _histogram("time_to_first_token", "From a request's arrival at the engine to its first token."),
    _histogram("time_per_output_token", "Between two tokens of a continuation, its mean."),
    _counter("tokens", "Output; prompt, and prompt_cached: the part not computed again.", "kind"),
    _gauge("tokens_per_second", "Tokens run through the model in a second of work, smoothed."),
    _gauge("batch_occupancy_ratio", "Share of the slots that a step uses, smoothed."),
    _gauge("kv_cache_usage_ratio", "Share of the key-value cache that sequences have reserved."),
    _gauge("slots", "Places for sequences: all of them, and those in use.", "state"),
    _gauge("engine_sequences", "Sequences that run or wait for a slot.", "state"),
    _counter("engine_steps", "Forward passes."),
    _counter("engine_failures", "Requests that failed in the engine, by error code.", "code"),
    _counter("prefix_cache_hits", "Uses of a prompt prefix that was computed before."),
    _counter("preemptions", "Slots taken from less urgent sequences."),
    _gauge("engine_healthy", "0 once the engine has stopped for good."),
    _gauge("engine_stalled_seconds", "How long the engine has had work and made no step."),
)
"""Of one worker."""

LEDGER = (
    _gauge("ledger_up", "1 if the ledger answered; if 0, the metrics of the queue are missing."),
    _gauge("workers", "Live workers."),
    _gauge("queue_depth", "Items that wait.", "class"),
    _gauge("queue_oldest_age_seconds", "How long a job has waited that could run.", "class"),
    _gauge("queue_backlog_seconds", "What waits, at the present pace."),
    _gauge("queue_items_per_second", "Items that ended in a second, lately: the pace."),
    _gauge("queue_jobs", "Running, delayed, suspect (to run alone); and items rung.", "state"),
    _counter("queue_accepted", "Jobs and messages accepted.", "class"),
    _counter("queue_refused", "Jobs and messages refused for want of room.", "class"),
    _counter("queue_ended", "Jobs and messages that ended.", "outcome"),
    _counter("queue_ended_items", "Jobs and rows that ended."),
    _counter("queue_retried", "Attempts that failed with an error that may pass."),
    _counter("queue_handed_back", "Jobs handed back by workers that stopped."),
    _counter("leases_expired", "Jobs taken back from workers that fell silent."),
    _counter("doorbells_lost", "Messages that no worker answered, and that were sent again."),
    _counter("duplicates_suppressed", "Results refused: the job had ended, or was another's."),
    _gauge("dead_letters", "Dead jobs that are kept."),
)
"""Of the whole queue; every process shows the same, so take the maximum, not the sum."""

ALL = {metric.name: metric for metric in (*WORKER, *LEDGER)}
