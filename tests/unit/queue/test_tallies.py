"""What a worker counts of its jobs, from the dispatcher's side."""

from __future__ import annotations

import threading

import pytest

from gptflow.client import Client
from gptflow.queue.tallies import Tallies
from gptflow.task import Input, Output, Task
from gptflow.testing import ScriptedEngine, registry_of


class Word(Input):
    text: str


class Said(Output):
    text: str


class Say(Task[Word, str, Said]):
    """Say it."""

    name = "say.it"

    async def run(self, input: Word, ctx: object) -> Said:
        if input.text == "bad":
            raise ValueError("no")
        return Said(text=input.text)


def test_jobs_and_rows_are_counted_by_plugin_class_and_outcome() -> None:
    registry = registry_of(Say())
    plugin = registry.owners["say.it"]
    with Client("memory://", engine=ScriptedEngine(), registry=registry) as flow:
        flow.run("say.it", {"text": "a"}, timeout=10, job_class="interactive")
        flow.submit("say.it", {"text": "bad"}).wait(10)
        flow.submit("no.such", {"text": "a"}).wait(10)
        rows = flow.submit_many("say.it", [{"text": "a"}] * 70 + [{"text": "bad"}]).results(10)
        assert len(list(rows)) == 71
        tallies: Tallies = flow.transport._dispatcher.tallies
        assert tallies.outcomes == {
            (plugin, "interactive", "done"): 1,
            (plugin, "standard", "failed"): 1,
            ("unknown", "standard", "failed"): 1,
            (plugin, "batch", "done"): 70,
            (plugin, "batch", "failed"): 1,
        }
        assert sum(tallies.running[plugin, "batch"]["counts"]) == 71
        assert sum(tallies.queued[plugin, "batch"]["counts"]) == 2  # messages
        assert tallies.totals() == {"done": 71, "failed": 3}


def test_nothing_is_lost_where_threads_count_at_the_same_time() -> None:
    tallies = Tallies()

    def count() -> None:
        for _ in range(2000):
            tallies.end("p", "batch", [("done", 0.1)])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tallies.totals() == {"done": 8000}
    assert tallies.running["p", "batch"]["sum"] == pytest.approx(800)
