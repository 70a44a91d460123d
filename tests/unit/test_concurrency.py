"""Steps of a job side by side."""

from __future__ import annotations

import asyncio

import pytest

from gptflow.concurrency import gather


def test_results_are_in_the_order_of_the_steps():
    async def late(value, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    assert asyncio.run(gather(late("a", 3), late("b", 0), late("c", 1))) == ["a", "b", "c"]


def test_a_failure_stops_the_others_and_is_raised_itself():
    stopped = []

    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(gather(wait(), fail(), wait()))
    assert stopped == [True, True]
