"""Celery's remote control, with revocations that stand on record, worker or no worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery.app.control import Control

from gptflow.errors import InvalidInput, JobNotFound
from gptflow.queue import records
from gptflow.queue.backend import job_id_of, may_come

if TYPE_CHECKING:
    from gptflow.queue.app import App


class LedgerControl(Control):
    """Revokes jobs in the ledger; what it does not know, workers are told as ever."""

    app: App

    def revoke(
        self,
        task_id: str | Sequence[str],
        destination: Any = None,
        terminate: bool = False,
        signal: Any = "SIGTERM",
        **options: Any,
    ) -> Any:
        """Cancel jobs that wait, and with `terminate` those that run, too."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        others = [name for name in ids if not self._cancel(name, terminate)]
        if not others or not self.app.settings.celery_tasks:
            return None  # workers run nothing else
        return super().revoke(
            others, destination=destination, terminate=terminate, signal=signal, **options
        )

    def _cancel(self, task_id: str, terminate: bool) -> bool:
        """False where it is no job."""
        transport = self.app.transport
        try:
            job_id = job_id_of(task_id)
            if terminate or transport.job(job_id).state != "running":
                transport.cancel(job_id)
        except InvalidInput:
            return False
        except JobNotFound:
            if not may_come(job_id):
                return False
            # A later step of a chain, or some other task: if it comes, it has ended.
            transport.store.refuse(records.cancelled(job_id, "?"))
            return False
        return True
