"""Mapper: `Context.map` by way of the queue, so that every worker takes a share."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import Any

from gptflow.context import Job
from gptflow.envelope import Envelope, Item, new_id
from gptflow.packing import Packer, estimate_tokens
from gptflow.result import Result
from gptflow.tracing import trace_context
from gptflow.transport import BatchRecord, Transport


class Mapper:
    """Submits batches and waits for them, off the event loop.

    Args:
        threads: how many maps may wait at once. They are the mapper's own: the mapped items
            need the event loop's threads, and must not queue behind whoever waits for them.
    """

    def __init__(self, transport: Transport, threads: int) -> None:
        self._transport = transport
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="gptflow-map")

    async def run(self, parent: Job, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run, for a job, a task on every input; results are in the inputs' order.

        Cancelling this cancels the batch.
        """
        batch_id = new_id("batch")
        trace = trace_context()  # of the job's span, which the other thread knows nothing of
        wait = partial(self._submit_and_wait, parent, batch_id, task, inputs, trace)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, wait)
        except asyncio.CancelledError:
            self._threads.submit(self._transport.cancel, batch_id)
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit_and_wait(
        self,
        parent: Job,
        batch_id: str,
        task: str,
        inputs: Sequence[Any],
        trace: dict[str, str],
    ) -> list[Result]:
        items = [Item(index=n, custom_id=str(n), input=value) for n, value in enumerate(inputs)]
        packer: Packer[Item] = Packer()
        messages = [packer.add(item, estimate_tokens(_text(item))) for item in items]
        chunks = [
            Envelope(
                task=task,
                items=tuple(message),
                batch=batch_id,
                tenant=parent.tenant,
                job_class="batch",
                seed=parent.seed,
                deadline=parent.deadline,
                trace=trace,
            )
            for message in (*messages, packer.rest())
            if message
        ]
        record = BatchRecord(id=batch_id, task=task, total=len(items), submitted=time.time())
        self._transport.submit_batch(record, chunks)
        ended = self._transport.batch_results(batch_id, None)
        return [result for _, result in sorted(ended, key=itemgetter(0))]


def _text(item: Item) -> str:
    return json.dumps(item.input, ensure_ascii=False, default=str)
