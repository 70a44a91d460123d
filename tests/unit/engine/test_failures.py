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
    """Fails each of the model's steps that some sequence of `which` is part of."""

    def __init__(self, engine, which=lambda sequence: True):
        self._forward = engine._runner.forward
        self._which = which
        self.failed = []
        engine._runner.forward = self

    def __call__(self, chunks):
        if any(self._which(chunk.sequence) for chunk in chunks):
            self.failed.append(len(chunks))
            raise MemoryError("no more")
        return self._forward(chunks)


POISON = 77


def poisoned(sequence):
    return POISON in sequence.tokens


@pytest.mark.parametrize("head", [Generate(max_tokens=20), Embed(), Choose(labels=("a", "b"))])
def test_who_makes_the_model_fail_fails_alone(tiny, make_engine, caplog, head):
    engine = make_engine(slots=4)
    failing = FailingForward(engine, poisoned)
    ids = [tuple(id_ for id_ in tiny.prompt_ids(9, i) if id_ != POISON) for i in range(3)]
    pause = tiny.Pause(engine)
    others = [engine.submit(tiny.ask(prompt, 12)) for prompt in ids]
    bad = engine.submit(Request(prompt=(POISON, 5, 6), head=head))
    vector = engine.submit(Request(prompt=ids[0], head=Embed()))
    pause.release()
    error = bad.exception(30)
    assert isinstance(error, StepFailed)
    assert (error.code, error.retryable) == ("GF705", True)
    for prompt, future in zip(ids, others, strict=True):
        assert future.result(30).continuations[0].tokens == tiny.greedy("llama", prompt, 12)
    assert vector.result(30).vector == pytest.approx(
        make_engine().submit(Request(prompt=ids[0], head=Embed())).result(30).vector, abs=1e-5
    )
    assert max(failing.failed) > 1  # it was in a step with others
    assert engine.stats()["failures"] == {"GF705": 1}
    assert engine.stats()["slots_used"] == 0
    assert "a step of the model has failed" in caplog.text


def test_requests_that_make_the_model_fail_do_not_stop_the_engine(tiny, make_engine):
    engine = make_engine(slots=1)
    FailingForward(engine, poisoned)
    for _ in range(6):
        error = engine.submit(tiny.ask((POISON, 5, 6), 2)).exception(30)
        assert isinstance(error, StepFailed)
    assert engine.submit(tiny.ask(tiny.prompt_ids(5), 4)).result(30)
    assert engine.healthy


def test_a_template_goes_on_with_another_when_the_step_of_the_first_fails(tiny, make_engine):
    engine = make_engine()
    FailingForward(engine, poisoned)
    text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. "
    template = Segment(text, trusted=True)
    poison = tiny.vocabulary.decode([POISON])
    pause = tiny.Pause(engine)
    prompts = [
        RenderedPrompt((Message(None, (template, Segment(text, trusted=False))),))
        for text in (poison, "the sun", "the dog", "Ada")
    ]
    assert POISON in tiny.vocabulary.encode(prompts[0])
    futures = [engine.submit(tiny.ask(prompt, 3)) for prompt in prompts]
    pause.release()
    assert isinstance(futures[0].exception(30), StepFailed)
    for prompt, future in list(zip(prompts, futures, strict=True))[1:]:
        expected = tiny.greedy("llama", tiny.vocabulary.encode(prompt), 3)
        assert future.result(30).continuations[0].tokens == expected
    assert sum(future.result(30).usage.cached > 8 for future in futures[1:]) == 2


def test_a_model_that_fails_whatever_it_is_given_stops_the_engine(tiny, make_engine, caplog):
    engine = make_engine()
    FailingForward(engine)
    for kind in (StepFailed, StepFailed, StepFailed, EngineStopped):
        assert isinstance(engine.submit(tiny.ask(tiny.prompt_ids(5), 2)).exception(30), kind)
    engine._thread.join(30)
    assert not engine.healthy
    assert "the engine has crashed" in caplog.text


def test_a_step_that_cannot_be_read_fails_its_requests(tiny, make_engine, monkeypatch):
    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "logits", lambda hidden, rows: 1 / 0)
        assert isinstance(engine.submit(tiny.ask((5, 6), 2)).exception(30), StepFailed)
    assert engine.submit(tiny.ask(tiny.prompt_ids(5), 4)).result(30)
    assert engine.stats()["slots_used"] == 0


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
        assert (error.code, error.retryable) == ("GF700", False), head
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
