"""4. Running: submit jobs to a queue and wait for their results.

The fixture `flow` is a `gptflow.Client("memory://")`: a queue and a worker inside the test, with
a scripted engine. With a Redis URL in its place, everything below stays as it is.
"""

import pytest

import gptflow
from gptflow.testing import ScriptedEngine


def test_submit_returns_at_once_and_result_waits(flow):
    job = flow.submit("text.summarize", {"text": "The cat sat. The dog ran."})
    assert job.result(timeout=10) == {"text": "A scripted answer."}


def test_run_is_submit_and_wait(flow):
    assert flow.run("text.summarize", "The cat sat.", timeout=10)["text"] == "A scripted answer."


def test_a_job_is_its_id(flow):
    """Keep the id; any client of the same queue finds the job again."""
    submitted = flow.submit("text.summarize", "The cat sat.")
    found = flow.job(submitted.id)
    assert found == submitted
    assert found.result(timeout=10)


def test_a_job_has_a_state(flow):
    job = flow.submit("text.summarize", "The cat sat.")
    job.wait(timeout=10)
    assert job.state == "done"
    assert job.record.task == "text.summarize"


def test_wait_gives_the_whole_result(flow):
    result = flow.submit("text.summarize", "The cat sat.").wait(timeout=10)
    assert result.ok
    assert result.output == {"text": "A scripted answer."}
    assert result.timings["running"] >= 0


def test_a_result_says_what_made_it(flow):
    provenance = flow.submit("text.summarize", "The cat sat.", seed=7).wait(timeout=10).provenance
    assert provenance.model["id"] == "scripted"
    assert provenance.seed == 7
    assert provenance.tokens_in > 0
    assert len(provenance.prompt_sha256) == 64


def test_the_same_key_is_the_same_job(flow):
    """So a caller that is not sure whether it submitted may submit again."""
    first = flow.submit("text.summarize", "The cat sat.", key="note-42")
    again = flow.submit("text.summarize", "The cat sat.", key="note-42")
    assert first == again


def test_tenants_do_not_share_keys(flow):
    first = flow.submit("text.summarize", "The cat sat.", key="note-42", tenant="acme")
    other = flow.submit("text.summarize", "The cat sat.", key="note-42", tenant="globex")
    assert first != other


def test_a_result_is_the_same_on_the_wire(flow):
    result = flow.submit("text.summarize", "The cat sat.").wait(timeout=10)
    assert gptflow.Result.from_dict(result.as_dict()) == result


def test_a_client_is_closed_like_a_file():
    with gptflow.Client("memory://", engine=ScriptedEngine(generate="Hi!")) as flow:
        assert flow.run("text.answer", "Who?", timeout=10) == {"text": "Hi!"}


def test_without_a_queue_the_client_says_how_to_get_one():
    with pytest.raises(gptflow.GPTFlowError, match="No Redis URL is set") as caught:
        gptflow.Client()
    assert "gptflow up" in caught.value.hint
