"""The executor: from input to result, whatever a plugin does on the way."""

import asyncio
import dataclasses
import json
import logging
import threading
import time
from concurrent.futures import Future

import pytest

from gptflow.config import Settings
from gptflow.context import Job
from gptflow.errors import EmptyInput, JobFailed, PluginError
from gptflow.executor import Executor
from gptflow.heads import Chosen, Generate, Generated
from gptflow.prompt import Prompt
from gptflow.task import Input, Output, Task, Text
from gptflow.testing import ScriptedEngine, registry_of


class Post(Input):
    text: Text


class Said(Output):
    text: str


class Say(Task[Post, Generated, Said]):
    """Say something."""

    name = "test.say"
    prompt = Prompt("Say {{ text }}")
    head = Generate()

    def postprocess(self, input, raw):
        return Said(text=raw.text)


class HeldEngine(ScriptedEngine):
    """Answers nothing until it is told to; a request that is cancelled stays unanswered."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()
        self.admit = threading.Event()
        self.admit.set()
        self.cancelled = threading.Event()
        self.held = {}

    def submit(self, request):
        self.asked.set()
        assert self.admit.wait(10)
        self.held[request.id] = Future()
        return self.held[request.id]

    def cancel(self, request_id):
        self.held[request_id].cancel()
        self.cancelled.set()
        return True


def run(task, input="hello", engine=None, **job):
    executor = Executor(engine or ScriptedEngine(), registry_of(task))
    return asyncio.run(executor.run(Job(id="job_1", task=task.name, input=input, **job)))


def line_of(text):
    with open(__file__, encoding="utf-8") as lines:
        return next(n for n, line in enumerate(lines, 1) if text in line)


def test_a_task_runs_from_input_to_output():
    result = run(Say(), engine=ScriptedEngine(generate=lambda text: text + "!"))
    assert (result.state, result.output) == ("done", {"text": "Say hello!"})
    assert result.timings["running"] > 0


def test_a_wrong_input_is_in_the_result_and_no_model_is_asked():
    engine = ScriptedEngine()
    result = run(Say(), " ", engine=engine)
    assert (result.state, result.error.code) == ("failed", EmptyInput.code)
    assert engine.requests == []


def test_an_unknown_task_is_in_the_result():
    executor = Executor(ScriptedEngine(), registry_of(Say()))
    result = asyncio.run(executor.run(Job(id="job_1", task="test.sing", input="x")))
    assert result.error.code == "GF210"
    assert result.error.hint == "Did you mean 'test.say'?"


def test_an_output_of_the_wrong_type_is_named_with_the_tasks_line():
    class Wrong(Say):
        def postprocess(self, input, raw):
            return {"text": "a dict"}

    error = run(Wrong()).error
    assert error.code == "GF204"
    assert "returned dict where it declares Said" in error.message
    assert f"{__file__}:{line_of('class Wrong(Say)')}" in error.message


def test_an_exception_is_named_with_its_line_and_never_with_the_input(caplog):
    class Raises(Say):
        def postprocess(self, input, raw):
            raise ValueError(f"cannot read {input.text}")

    with caplog.at_level(logging.INFO):
        error = run(Raises(), "my secret").error
    assert error.code == JobFailed.code
    assert "ValueError" in error.message
    assert f"{__file__}:{line_of('cannot read {input.text}')}" in error.message
    for told in (error.message, str(error.hint), caplog.text):
        assert "secret" not in told


def json_of(text):
    return json.loads(text)


def test_an_exception_in_a_library_is_traced_to_the_plugins_line():
    class Reads(Say):
        def prepare(self, input):
            return json_of(input.text)

    error = run(Reads()).error
    assert f"{__file__}:{line_of('json.loads(text)')}" in error.message


def test_an_exception_that_is_one_of_ours_keeps_its_code_and_hint():
    class Refuses(Say):
        def prepare(self, input):
            raise EmptyInput("There is no answer.", hint="Ask something.")

    assert run(Refuses()).error.as_dict() == {
        "code": "GF301",
        "message": "There is no answer.",
        "hint": "Ask something.",
    }


def test_the_head_may_depend_on_the_input():
    class Longer(Say):
        def head_for(self, input):
            return Generate(max_tokens=len(input.text))

    engine = ScriptedEngine()
    run(Longer(), "seven..", engine=engine)
    assert engine.requests[0].head.max_tokens == 7


@pytest.mark.parametrize("missing", ["prompt", "head"])
def test_a_step_that_declares_too_little_fails_its_jobs(missing):
    assert run(type("Bare", (Say,), {missing: None})()).error.code == PluginError.code


# Deadlines and cancelling


def test_a_job_that_does_not_end_before_its_deadline_is_stopped_on_the_engine():
    engine = HeldEngine()
    result = run(Say(), engine=engine, deadline=time.time() + 0.05)
    assert result.error.code == "GF504"
    assert engine.cancelled.wait(5)


def test_a_deadline_that_has_passed_starts_nothing():
    engine = HeldEngine()
    assert run(Say(), engine=engine, deadline=time.time() - 1).error.code == "GF504"
    assert not engine.held or engine.cancelled.wait(5)


@pytest.mark.parametrize("deadline", [None, 9e9])
def test_a_timeout_of_the_tasks_own_is_not_the_deadline(deadline):
    class Slow(Say):
        async def run(self, input, ctx):
            raise TimeoutError

    error = run(Slow(), deadline=deadline).error
    assert error.code == JobFailed.code
    assert "TimeoutError" in error.message


def cancel_once_asked(engine):
    async def main():
        executor = Executor(engine, registry_of(Say()))
        running = asyncio.create_task(executor.run(Job(id="job_1", task="test.say", input="x")))
        await asyncio.to_thread(engine.asked.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        engine.admit.set()
        assert await asyncio.to_thread(engine.cancelled.wait, 10)

    asyncio.run(main())


def test_cancelling_a_job_cancels_its_requests():
    cancel_once_asked(HeldEngine())


def test_a_request_that_is_still_on_its_way_is_cancelled_when_it_arrives():
    engine = HeldEngine()
    engine.admit.clear()
    cancel_once_asked(engine)


# Setup


class Counted(Say):
    def __init__(self):
        self.setups = []

    def setup(self, ctx):
        self.setups.append(ctx.directory)


def test_setup_runs_once_however_many_jobs_start_at_the_same_time():
    task = Counted()
    executor = Executor(ScriptedEngine(), registry_of(task))
    results = asyncio.run(executor.run_many("test.say", ["x"] * 50))
    assert all(result.ok for result in results)
    assert task.setups == [task.directory]


def test_a_worker_sets_its_tasks_up_before_the_first_job():
    task = Counted()
    executor = Executor(ScriptedEngine(), registry_of(task))
    executor.setup()
    executor.setup(["test.say"])
    assert len(task.setups) == 1


class Unready(Say):
    def setup(self, ctx):
        (ctx.directory / "no_such_file.txt").read_text()


def test_a_setup_that_raises_is_named_with_its_line():
    with pytest.raises(PluginError, match="setup raised FileNotFoundError") as caught:
        Executor(ScriptedEngine(), registry_of(Unready())).setup()
    assert f"{__file__}:{line_of('no_such_file.txt')}" in caught.value.message


def test_a_setup_that_raises_fails_each_job_until_it_does_not():
    class Later(Say):
        tries = 0

        def setup(self, ctx):
            type(self).tries += 1
            if self.tries == 1:
                raise EmptyInput("Not yet.")

    executor = Executor(ScriptedEngine(), registry_of(Later()))
    results = [
        asyncio.run(executor.run(Job(id="job_1", task="test.say", input="x"))) for _ in range(2)
    ]
    assert [result.state for result in results] == ["failed", "done"]


# Many at once


def test_many_inputs_give_as_many_results_in_their_order():
    engine = ScriptedEngine(generate=lambda text: text[4:])
    executor = Executor(engine, registry_of(Say()))
    results = asyncio.run(executor.run_many("test.say", ["a", " ", "c"]))
    assert [result.output and result.output["text"] for result in results] == ["a", None, "c"]
    assert results[1].error.code == EmptyInput.code


class Fan(Task[Post, Chosen, Said]):
    """Say each word by another task."""

    name = "test.fan"

    async def run(self, input, ctx):
        results = await ctx.map("test.say", input.text.split())
        return Said(text=" ".join(result.unwrap()["text"] for result in results))


def test_a_task_may_map_another_over_many_inputs():
    engine = ScriptedEngine(generate=lambda text: text[4:].upper())
    executor = Executor(engine, registry_of(Say(), Fan()))
    result = asyncio.run(executor.run(Job(id="job_1", task="test.fan", input="a b c")))
    assert result.output == {"text": "A B C"}


def test_a_worker_may_map_in_its_own_way():
    asked = []

    async def elsewhere(parent, task, inputs):
        asked.append((parent.id, task, list(inputs)))
        return []

    executor = Executor(ScriptedEngine(), registry_of(Fan()), map=elsewhere)
    asyncio.run(executor.run(Job(id="job_1", task="test.fan", input="a b")))
    assert asked == [("job_1", "test.say", ["a", "b"])]


def test_mapped_inputs_belong_to_the_job_that_maps_them():
    engine = ScriptedEngine()
    executor = Executor(engine, registry_of(Say(), Fan()))
    job = Job(id="job_1", task="test.fan", input="a b", tenant="acme", job_class="batch", seed=7)
    asyncio.run(executor.run(job))
    assert {(r.tenant, r.job_class) for r in engine.requests} == {("acme", "batch")}
    first = [request.seed for request in engine.requests]
    asyncio.run(executor.run(dataclasses.replace(job, id="job_2")))
    again = [request.seed for request in engine.requests[2:]]
    assert len(set(first)) == 2
    assert sorted(first) == sorted(again), "the seed of an item depends on the job's seed alone"


def test_tasks_are_set_up_with_the_workers_settings_and_plugins():
    seen = []

    class Curious(Say):
        name = "test.curious"

        def setup(self, ctx):
            seen.append((ctx.settings.slots, sorted(ctx.registry.tasks)))

    registry = registry_of(Curious())
    Executor(ScriptedEngine(), registry, settings=Settings(slots=3)).setup()
    assert seen == [(3, ["test.curious"])]
