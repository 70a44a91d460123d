"""6. Errors: one tree, each with a stable code and what to type next."""

import threading

import pytest

from gptflow.client import Client
from gptflow.errors import (
    EmptyInput,
    GPTFlowError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobTimeout,
    TaskNotFound,
)
from gptflow.testing import ScriptedEngine


@pytest.fixture
def gate():
    """What a model that takes its time waits for."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def slow_flow(gate):
    """A client whose model answers only once the gate is open."""

    def think(prompt):
        gate.wait(30)
        return "At last."

    with Client("memory://", engine=ScriptedEngine(generate=think)) as client:
        yield client
        gate.set()


def test_result_raises_what_the_job_ended_in(flow):
    with pytest.raises(EmptyInput):
        flow.submit("text.summarize", "  ").result(timeout=10)


def test_wait_does_not_raise_it(flow):
    result = flow.submit("text.summarize", "  ").wait(timeout=10)
    assert result.state == "failed"
    assert result.error.code == EmptyInput.code


def test_a_wrong_field_is_named_with_the_nearest_right_one(flow):
    with pytest.raises(InvalidInput) as caught:
        flow.run("text.summarize", {"text": "x", "max_token": 5}, timeout=10)
    assert caught.value.hint == "Did you mean 'max_tokens'?"


def test_a_misspelt_task_is_named_with_the_nearest_real_one(flow):
    with pytest.raises(TaskNotFound) as caught:
        flow.run("text.sumarize", "x", timeout=10)
    assert caught.value.hint == "Did you mean 'text.summarize'?"


def test_an_unknown_job_is_not_found(flow):
    with pytest.raises(JobNotFound):
        flow.job("job_00000000-0000-7000-8000-000000000000").result(timeout=10)


def test_waiting_may_time_out_and_the_job_goes_on(slow_flow, gate):
    job = slow_flow.submit("text.answer", "Why?")
    with pytest.raises(JobTimeout):
        job.result(timeout=0.05)
    gate.set()
    assert job.result(timeout=10) == {"text": "At last."}


def test_a_job_may_be_cancelled(slow_flow):
    job = slow_flow.submit("text.answer", "Why?")
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=10)


def test_so_may_a_batch_and_what_has_ended_stays(slow_flow):
    batch = slow_flow.submit_many("text.answer", ["  ", "Why?", "How?"])
    ended = batch.as_completed(timeout=10)
    number, first = next(ended)
    assert slow_flow.cancel(batch.id)
    assert (number, first.state) == (0, "failed")
    assert {result.state for _, result in ended} == {"cancelled"}
    assert not batch.cancel()


def test_a_job_that_has_ended_cannot_be_cancelled(flow):
    job = flow.submit("text.answer", "Why?")
    job.wait(timeout=10)
    assert not job.cancel()


def test_a_bug_in_a_plugin_is_a_failed_job_with_its_line_and_without_the_input():
    def broken(prompt):
        raise KeyError(prompt)

    with Client("memory://", engine=ScriptedEngine(generate=broken)) as flow:
        with pytest.raises(JobFailed, match=r"raised KeyError at .*:\d+") as caught:
            flow.run("text.answer", "my secret", timeout=10)
        assert "secret" not in str(caught.value)


def test_one_class_catches_them_all(flow):
    with pytest.raises(GPTFlowError):
        flow.run("no.such_task", "x", timeout=10)


def test_what_is_not_json_is_refused_before_it_is_sent(flow):
    with pytest.raises(InvalidInput, match="not JSON"):
        flow.submit("text.answer", {"text": object()})
