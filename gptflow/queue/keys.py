"""The names of everything that is kept in Redis.

The braces make all keys of one application hash to the same slot of a Redis Cluster. What the
scripts keep for themselves (who is next, what was handed out) is named in `lua/common.lua`.
"""

from __future__ import annotations

import dataclasses

from gptflow.request import JobClass

CLASSES: tuple[JobClass, ...] = ("interactive", "standard", "batch")
"""In the order in which they are served."""


def queue_name(job_class: JobClass) -> str:
    """The Celery queue of a class; its key has the application's prefix before it."""
    return f"gf.{job_class}"


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one application."""

    app: str

    @property
    def prefix(self) -> str:
        return f"gf:{{{self.app}}}:"

    @property
    def jobs(self) -> str:
        """Sorted set of the newest job ids, by submission time."""
        return f"{self.prefix}jobs"

    @property
    def leases(self) -> str:
        """Sorted set of the ids of running jobs, by the time at which their lease runs out."""
        return f"{self.prefix}lease"

    @property
    def suspects(self) -> str:
        """Sorted set of the ids of jobs that must run alone, by submission time."""
        return f"{self.prefix}suspects"

    @property
    def delayed(self) -> str:
        """Sorted set of the ids of queued jobs that must wait, by the time from which they run."""
        return f"{self.prefix}delayed"

    @property
    def dead(self) -> str:
        """Sorted set of the ids of dead jobs, by the time of their death."""
        return f"{self.prefix}dead"

    @property
    def policy(self) -> str:
        """Hash: limits and weights as the workers' settings have them, and the recent pace."""
        return f"{self.prefix}policy"

    @property
    def depth(self) -> str:
        """Hash: items that wait, by class and by `class/tenant`."""
        return f"{self.prefix}depth"

    @property
    def totals(self) -> str:
        """Hash: counters since the server was first used."""
        return f"{self.prefix}totals"

    @property
    def journal(self) -> str:
        """Stream: the last ends of jobs."""
        return f"{self.prefix}journal"

    @property
    def refused(self) -> str:
        """Stream: the last messages that could not be read as jobs, and why; none of their text."""
        return f"{self.prefix}refused"

    @property
    def outbox(self) -> str:
        """Sorted set of ended jobs that others follow, until those are enqueued, by their end."""
        return f"{self.prefix}outbox"

    def group(self, group_id: str) -> str:
        """Hash: the jobs of a group that have ended, by their place in it."""
        return f"{self.prefix}group:{group_id}"

    @property
    def workers(self) -> str:
        """Sorted set of worker names, by the time of their last sign of life."""
        return f"{self.prefix}workers"

    @property
    def cancels(self) -> str:
        """Channel on which the ids of cancelled jobs are announced."""
        return f"{self.prefix}cancels"

    @property
    def wake(self) -> str:
        """Channel on which it is announced that there are jobs to take."""
        return f"{self.prefix}wake"

    def waiting(self, job_class: JobClass) -> str:
        """Sorted set of a class's queued jobs, by the time since which they could have run."""
        return f"{self.prefix}waiting:{job_class}"

    def job(self, job_id: str) -> str:
        """Hash: a job's record, and its result once it has ended."""
        return f"{self.prefix}job:{job_id}"

    def input(self, job_id: str) -> str:
        """String: an input that is too large for the envelope."""
        return f"{self.prefix}input:{job_id}"

    def stream(self, job_or_batch_id: str) -> str:
        """Stream: a job's text and end, or the items of a batch that have ended."""
        return f"{self.prefix}s:{job_or_batch_id}"

    def batch(self, batch_id: str) -> str:
        """Hash: a batch's record."""
        return f"{self.prefix}batch:{batch_id}"

    def members(self, batch_id: str) -> str:
        """Set: the jobs that carry a batch's items."""
        return f"{self.prefix}batch:{batch_id}:jobs"

    def results(self, batch_id: str) -> str:
        """Hash: item number to result."""
        return f"{self.prefix}batch:{batch_id}:results"

    def worker(self, name: str) -> str:
        """String: a live worker's record; it expires when the worker falls silent."""
        return f"{self.prefix}worker:{name}"

    def log(self, worker: str) -> str:
        """List: the last lines of a worker's log."""
        return f"{self.prefix}log:{worker}"

    def schedule(self, name: str) -> str:
        """Hash: up to where a schedule's fires are settled, its last job, whether it rests."""
        return f"{self.prefix}schedule:{name}"

    def queue(self, job_class: JobClass) -> str:
        """List: the Celery queue of a class."""
        return f"{self.prefix}{queue_name(job_class)}"
