"""9. Streaming: read a text while the model is still writing it."""

import pytest

from gptflow import Context, Generated, Input, Output, Prompt, Task, Text
from gptflow.errors import EmptyInput
from gptflow.testing import registry_of


def test_a_stream_is_the_text_piece_by_piece(flow):
    pieces = list(flow.stream("text.generate", "Once upon a time", timeout=10))
    assert "".join(pieces) == "A scripted answer."


def test_the_error_of_a_job_comes_after_its_last_piece(flow):
    with pytest.raises(EmptyInput):
        list(flow.stream("text.generate", "  ", timeout=10))


def test_a_job_that_was_submitted_for_it_can_be_followed(flow):
    job = flow.submit("text.generate", "Once upon a time", stream=True)
    events = list(job.events(timeout=10))
    assert "".join(event.text for event in events if event.kind == "delta") == "A scripted answer."
    assert events[-1].kind == "end"


def test_a_reader_may_resume_where_it_stopped(flow):
    job = flow.submit("text.generate", "Once upon a time", stream=True)
    first, *rest = list(job.events(timeout=10))
    assert list(job.events(after=first.id, timeout=10)) == rest


def test_the_result_is_there_as_well(flow):
    job = flow.submit("text.generate", "Once upon a time", stream=True)
    list(job.events(timeout=10))
    assert job.result(timeout=10)["text"] == "A scripted answer."


class Message(Input):
    text: Text


class Reply(Output):
    text: str


class Think(Task[Message, Generated, Reply]):
    """Think first, then answer."""

    name = "desk.think"
    thought = Prompt("Think about: {{ text }}")
    answer = Prompt("Answer: {{ text }}")

    async def run(self, input: Message, ctx: Context) -> Reply:
        await ctx.generate(self.thought, dict(input))
        raw = await ctx.generate(self.answer, dict(input), stream=True)
        return Reply(text=raw.text)


class TestSteps:
    @pytest.fixture
    def flow_registry(self):
        return registry_of(Think())

    def test_of_several_steps_only_those_that_say_so_are_streamed(self, flow, scripted_engine):
        pieces = list(flow.stream("desk.think", "Why?", timeout=10))
        assert "".join(pieces) == "A scripted answer."
        assert len(scripted_engine.requests) == 2
