"""Running the steps of one job side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def gather(*steps: Coroutine[Any, Any, T]) -> list[T]:
    """Await all steps at once; their results are in the steps' order.

    Unlike `asyncio.gather`, the first failure stops the other steps, so that nothing of a job
    that has failed goes on using the model; the failure itself is raised, not a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
