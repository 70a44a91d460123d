"""Failures: of a step, of one sequence, of a callback; and who is harmed by them."""

from __future__ import annotations

import pytest

from gptflow.engine.constraints import Constraint
from gptflow.engine.detokenizer import Detokenizer
from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Pooling, Structured
from gptflow.errors import (
    EngineError,
    EngineStopped,
    StepFailed,
)
from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import Message, RenderedPrompt, Segment
from gptflow.request import Request


class FailingForward:
    """Fails the model's next `times` steps."""

    def __init__(self, engine, times):
        self._forward = engine._runner.forward
        self._left = times
        engine._runner.forward = self

    def __call__(self, chunks):
        if self._left:
            self._left -= 1
            raise MemoryError("no more")
        return self._forward(chunks)


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(tiny, make_engine, caplog):
    engine = make_engine(slots=2)
    FailingForward(engine, 2)
    for _ in range(2):
        error = engine.submit(tiny.ask(tiny.prompt_ids(5), 2)).exception(30)
        assert isinstance(error, StepFailed)
        assert error.retryable
    answer = engine.submit(tiny.ask(tiny.prompt_ids(5), 4)).result(30)
    assert answer.continuations[0].tokens == tiny.greedy("llama", tiny.prompt_ids(5), 4)
    assert engine.healthy
    assert engine.stats()["slots_used"] == 0
    assert "a step of the model has failed" in caplog.text


def test_steps_that_keep_failing_stop_the_engine(tiny, make_engine, caplog):
    engine = make_engine()
    FailingForward(engine, 3)
    for kind in (StepFailed, StepFailed, EngineStopped, EngineStopped):
        assert isinstance(engine.submit(tiny.ask(tiny.prompt_ids(5), 2)).exception(30), kind)
    assert not engine.healthy
    assert "the engine has crashed" in caplog.text


def test_what_fails_for_one_sequence_fails_it_alone(tiny, make_engine, monkeypatch):
    engine = make_engine()
    ids = tiny.prompt_ids(5)
    expected = tiny.greedy("llama", ids, 60)

    def broken(*args, **settings):
        raise ZeroDivisionError("the user's own words")

    labels = ("good", "quite bad")
    cases = [
        (Constraint, "mask", Json(schema={"enum": ["a", "b"]})),
        (Structured, "accept", Json(schema={"enum": ["a", "b"]})),
        (Scoring, "advance", Choose(labels=labels)),
        (Scoring, "add", Score()),
        (Pooling, "add", Embed()),
        (Detokenizer, "push", Generate(stop=("zzz",))),
    ]
    for owner, method, head in cases:
        neighbour = engine.submit(tiny.ask(ids, 60))
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, broken)
            error = engine.submit(Request(prompt=ids, head=head)).exception(30)
        assert isinstance(error, EngineError), head
        assert "ZeroDivisionError" in str(error)
        assert "own words" not in str(error)
        assert neighbour.result(30).continuations[0].tokens == expected
        assert engine.submit(Request(prompt=ids, head=head)).exception(30) is None or (
            head == cases[0][2]  # a random model need not end its JSON
        )
    assert engine.stats()["slots_used"] == 0


def test_a_panic_of_the_grammar_is_an_error():
    class Panic(BaseException):
        pass

    class Matcher:
        def compute_bitmask(self):
            raise Panic

    with pytest.raises(EngineError, match="Panic"):
        Constraint(Matcher(), 8).mask()


def test_submit_never_raises(make_engine):
    engine = make_engine()
    lone = "\ud800"
    surrogate = RenderedPrompt((Message("user", (Segment(lone, trusted=True),)),))
    good = RenderedPrompt.plain("The dog", trusted=True)
    for request in (
        Request(prompt=surrogate, head=Generate()),
        Request(prompt=good, head=Choose(labels=(f"a{lone}", "b"))),
    ):
        error = engine.submit(request).exception(30)
        assert isinstance(error, EngineError)
        assert "TypeError" in str(error)


def test_a_callback_that_raises_harms_nobody(tiny, make_engine, caplog):
    def broken(delta):
        raise ValueError("mine")

    answer = make_engine().submit(tiny.ask(tiny.prompt_ids(5), 4, on_delta=broken)).result(30)
    assert answer.continuations[0].tokens == tiny.greedy("llama", tiny.prompt_ids(5), 4)
    assert "on_delta" in caplog.text
