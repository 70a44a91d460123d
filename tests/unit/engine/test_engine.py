"""The engine's life: queueing, cancelling, deadlines, closing, crashing."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

from gptflow.engine.constraints import Constraint
from gptflow.engine.detokenizer import Detokenizer
from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Pooling, Structured
from gptflow.errors import (
    AdapterNotFound,
    EngineError,
    EngineStopped,
    InvalidInput,
    JobTimeout,
    StepFailed,
    UnsupportedHead,
)
from gptflow.heads import Choose, Classify, Embed, Generate, Json, MultiHead, Score, Tag
from gptflow.prompt import Message, RenderedPrompt, Segment
from gptflow.request import Request


def ask(ids, new=200, **more):
    return Request(prompt=ids, head=Generate(max_tokens=new), ignore_eos=True, **more)


class Pause:
    """Holds the engine's thread before its next step."""

    def __init__(self, engine):
        self._step = engine._step
        self._go = threading.Event()
        self.reached = threading.Event()
        engine._step = self

    def __call__(self):
        self.reached.set()
        assert self._go.wait(30)
        self._step()

    def release(self):
        self._go.set()


def test_more_requests_than_slots(tiny, make_engine):
    engine = make_engine(slots=3)
    futures = [engine.submit(ask(tiny.prompt_ids(5 + i), 10)) for i in range(20)]
    for i, future in enumerate(futures):
        expected = tiny.greedy("llama", tiny.prompt_ids(5 + i), 10)
        assert future.result(60).continuations[0].tokens == expected
    stats = engine.stats()
    assert stats["peak_running"] == 3
    assert stats["requests"] == 20
    assert stats["tokens_out"] == 200
    assert stats["tokens_in"] == sum(range(5, 25))


def test_a_request_joins_while_another_decodes(tiny, make_engine):
    engine = make_engine()
    decoding = threading.Event()
    long = engine.submit(ask(tiny.prompt_ids(5), 240, on_delta=lambda _: decoding.set()))
    assert decoding.wait(30)
    engine.submit(ask(tiny.prompt_ids(9), 2)).result(30)
    assert not long.done()
    assert engine.cancel("no such request") is False
    long.cancel()


def test_interactive_requests_overtake_batches(tiny, make_engine):
    engine = make_engine(slots=1)
    pause = Pause(engine)
    order: list[str] = []
    futures = []
    classes = ("standard", "batch", "batch", "standard", "interactive")
    for number, job_class in enumerate(classes):
        future = engine.submit(ask(tiny.prompt_ids(6), 2, job_class=job_class))
        future.add_done_callback(lambda _, n=number: order.append(n))
        futures.append(future)
        if number == 0:
            assert pause.reached.wait(30)
    pause.release()
    wait(futures, 30)
    # The first one was running when the others came, and made room for the interactive one.
    assert order == [4, 0, 3, 1, 2]


@pytest.mark.parametrize("stage", ["inbox", "waiting", "prefilling", "decoding"])
@pytest.mark.parametrize("through", ["engine", "future"])
def test_cancel_at_every_stage(tiny, make_engine, stage, through):
    engine = make_engine(slots=1, prefill_tokens=8)
    begun = threading.Event()
    request = ask(tiny.prompt_ids(100), 150, on_delta=lambda _: begun.set())
    if stage == "waiting":
        first = engine.submit(ask(tiny.prompt_ids(5), 150, on_delta=lambda _: begun.set()))
        assert begun.wait(30)
    pause = None if stage == "decoding" else Pause(engine)
    if stage == "inbox":
        engine.submit(ask(tiny.prompt_ids(5), 1))
        assert pause.reached.wait(30)
    future = engine.submit(request)
    if stage == "decoding":
        assert begun.wait(30)
    elif stage == "prefilling":
        assert pause.reached.wait(30)
        pause.release()  # one chunk of thirteen, or some more
    assert engine.cancel(request.id) if through == "engine" else future.cancel()
    if pause is not None:
        pause.release()
    with pytest.raises(CancelledError):
        future.result(0)
    assert wait([future], 30).done
    assert engine.cancel(request.id) is False
    if stage == "waiting":
        first.cancel()
    assert engine.submit(ask(tiny.prompt_ids(7), 2)).result(30)
    assert engine.stats()["slots_used"] == 0


def test_cancelling_one_of_many_samples_frees_all(tiny, make_engine):
    engine = make_engine(slots=3)
    begun = threading.Event()
    head = Generate(max_tokens=150, temperature=1.0, n=8)
    future = engine.submit(
        Request(
            prompt=tiny.prompt_ids(9), head=head, ignore_eos=True, on_delta=lambda _: begun.set()
        )
    )
    assert begun.wait(30)
    assert future.cancel()
    engine.submit(ask(tiny.prompt_ids(7), 2)).result(30)
    stats = engine.stats()
    assert (stats["slots_used"], stats["waiting"], stats["running"]) == (0, 0, 0)


def test_deadlines(tiny, make_engine):
    engine = make_engine(slots=1)
    begun = threading.Event()
    late = engine.submit(ask(tiny.prompt_ids(5), deadline=time.time() - 1))
    assert isinstance(late.exception(30), JobTimeout)
    running = engine.submit(
        ask(tiny.prompt_ids(5), 250, deadline=time.time() + 1000, on_delta=lambda _: begun.set())
    )
    assert begun.wait(30)
    heap = engine._deadlines._heap
    heap[0] = (0.0, *heap[0][1:])
    assert isinstance(running.exception(30), JobTimeout)
    assert engine.submit(ask(tiny.prompt_ids(5), 2)).result(30)


@pytest.mark.parametrize(
    ("deadline", "error"),
    [
        (float("nan"), InvalidInput),
        ("tomorrow", EngineError),
        (float("-inf"), JobTimeout),
        (float("inf"), type(None)),
        (2**70, type(None)),
    ],
)
def test_deadlines_that_are_no_time(tiny, make_engine, deadline, error):
    engine = make_engine()
    future = engine.submit(ask(tiny.prompt_ids(5), 2, deadline=deadline))
    assert isinstance(future.exception(30), error)
    assert engine.submit(ask(tiny.prompt_ids(5), 2, deadline=time.time() + 1e9)).result(30)


def test_a_deadline_passes_for_one_that_waits(tiny, make_engine):
    engine = make_engine(slots=1)
    begun = threading.Event()
    long = engine.submit(ask(tiny.prompt_ids(5), 250, on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    late = engine.submit(ask(tiny.prompt_ids(6), 5, deadline=time.time() + 0.01))
    assert isinstance(late.exception(30), JobTimeout)
    assert not long.done()
    long.cancel()


def test_answered_requests_do_not_stay_until_their_deadline(tiny, make_engine):
    engine = make_engine()
    for number in range(300):
        head = Embed()
        request = Request(prompt=(5, 6), head=head, deadline=time.time() + 1e6 + number)
        engine.submit(request).result(30)
    assert len(engine._deadlines) < 150


def labelled(blank, **more):
    return Request(
        prompt=RenderedPrompt.plain("The dog"),
        head=Choose(labels=("good", "bad")),
        baseline=RenderedPrompt.plain(blank),
        **more,
    )


def test_cancelled_while_its_baseline_is_pending(tiny, make_engine):
    engine = make_engine(slots=1)
    arriving = Pause(engine)
    first = engine.submit(ask(tiny.prompt_ids(5), 250))
    assert arriving.reached.wait(30)
    alone = engine.submit(labelled("nothing"))
    shared = [engine.submit(labelled("nothing at all")) for _ in range(2)]
    waiting = Pause(engine)
    arriving.release()
    assert waiting.reached.wait(30)
    assert engine.stats()["baselines"] == 2
    assert engine.stats()["waiting"] == 5  # three prompts and two baselines
    assert alone.cancel()
    assert shared[0].cancel()
    assert first.cancel()
    waiting.release()
    assert shared[1].result(30).label in ("good", "bad")
    assert engine.stats()["baselines"] == 1  # nobody waited for the other one any more
    assert engine.submit(labelled("nothing")).result(30)
    assert engine.stats()["waiting"] == engine.stats()["slots_used"] == 0


def test_a_baseline_waits_in_the_class_of_the_most_urgent_that_needs_it(tiny, make_engine):
    engine = make_engine(slots=1)
    pause = Pause(engine)
    holder = engine.submit(ask(tiny.prompt_ids(5), 60, job_class="interactive"))
    assert pause.reached.wait(30)
    order = []
    futures = [
        engine.submit(labelled("N/A", job_class="batch")),
        engine.submit(ask(tiny.prompt_ids(6), 2)),
        engine.submit(labelled("N/A", job_class="interactive")),
    ]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, n=number: order.append(n))
    pause.release()
    wait([holder, *futures], 30)
    assert order == [2, 1, 0]
    assert engine.stats()["preemptions"] == 0


def test_cancelled_between_its_samples(tiny, make_engine):
    engine = make_engine(slots=1)
    texts = []
    request = Request(
        prompt=tiny.prompt_ids(9),
        head=Generate(max_tokens=20, temperature=1.0, n=3),
        ignore_eos=True,
        on_delta=lambda delta: texts.append(delta.sample) or stop(delta),
    )

    def stop(delta):
        if delta.sample == 1:
            engine.cancel(request.id)

    future = engine.submit(request)
    with pytest.raises(CancelledError):
        future.result(30)
    engine.submit(ask(tiny.prompt_ids(7), 2)).result(30)
    assert (engine.stats()["slots_used"], engine.stats()["waiting"]) == (0, 0)
    assert engine._sharing.nbytes == 0


def test_samples_compute_the_prompt_again_where_copies_would_take_too_much(tiny, make_engine):
    request = Request(
        prompt=tiny.prompt_ids(40),
        head=Generate(max_tokens=6, temperature=1.0, n=4),
        ignore_eos=True,
        seed=9,
    )
    answers = [make_engine(prefix_bytes=size).submit(request).result(30) for size in (1 << 20, 0)]
    tokens = [[c.tokens for c in answer.continuations] for answer in answers]
    assert tokens[0] == tokens[1]
    assert answers[0].usage == answers[1].usage


def test_what_this_engine_does_not_do(tiny, make_engine):
    engine = make_engine()
    labels = ("good", "bad")
    for head in (
        Classify(labels=labels),
        MultiHead(heads={"mood": Classify(labels=labels)}),
        Tag(labels=labels),
        Score(each="items"),
    ):
        error = engine.submit(Request(prompt=(5, 6), head=head)).exception(30)
        assert isinstance(error, UnsupportedHead), head
    head = Choose(labels=labels, adapter="mood")
    error = engine.submit(Request(prompt=(5, 6), head=head)).exception(30)
    assert isinstance(error, AdapterNotFound)


def test_the_same_id_twice(tiny, make_engine):
    engine = make_engine()
    pause = Pause(engine)
    first = engine.submit(ask(tiny.prompt_ids(5), 3, id="twice"))
    second = engine.submit(ask(tiny.prompt_ids(5), 3, id="twice"))
    assert isinstance(second.exception(30), EngineError)
    pause.release()
    assert first.result(30)


def test_close_fails_what_is_in_flight(tiny, make_engine):
    engine = make_engine(slots=1)
    assert engine.healthy
    begun = threading.Event()
    futures = [engine.submit(ask(tiny.prompt_ids(5), 250, on_delta=lambda _: begun.set()))]
    futures += [engine.submit(ask(tiny.prompt_ids(6), 250)) for _ in range(3)]
    assert begun.wait(30)
    engine.close()
    futures.append(engine.submit(ask(tiny.prompt_ids(5), 1)))
    for future in futures:
        assert isinstance(future.exception(30), EngineStopped)
    assert not engine.healthy
    engine.close()


def test_a_callback_may_close_the_engine(tiny, make_engine):
    engine = make_engine()
    future = engine.submit(ask(tiny.prompt_ids(5), 2))
    future.add_done_callback(lambda _: engine.close())
    assert future.result(30)
    engine._thread.join(30)
    assert not engine._thread.is_alive()


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
        error = engine.submit(ask(tiny.prompt_ids(5), 2)).exception(30)
        assert isinstance(error, StepFailed)
        assert error.retryable
    answer = engine.submit(ask(tiny.prompt_ids(5), 4)).result(30)
    assert answer.continuations[0].tokens == tiny.greedy("llama", tiny.prompt_ids(5), 4)
    assert engine.healthy
    assert engine.stats()["slots_used"] == 0
    assert "a step of the model has failed" in caplog.text


def test_steps_that_keep_failing_stop_the_engine(tiny, make_engine, caplog):
    engine = make_engine()
    FailingForward(engine, 3)
    for kind in (StepFailed, StepFailed, EngineStopped, EngineStopped):
        assert isinstance(engine.submit(ask(tiny.prompt_ids(5), 2)).exception(30), kind)
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
        neighbour = engine.submit(ask(ids, 60))
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

    answer = make_engine().submit(ask(tiny.prompt_ids(5), 4, on_delta=broken)).result(30)
    assert answer.continuations[0].tokens == tiny.greedy("llama", tiny.prompt_ids(5), 4)
    assert "on_delta" in caplog.text


def test_no_slot_leaks(tiny, make_engine):
    engine = make_engine(slots=5, step_tokens=48, prefill_tokens=48)
    dice = random.Random(1)
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4}
    futures = []
    for number in range(300):
        head = dice.choice(
            [
                Generate(max_tokens=dice.randint(1, 12), temperature=1.0),
                Generate(max_tokens=5, n=dice.randint(2, 4), temperature=1.0, stop=("e",)),
                Json(schema=schema),
                Choose(labels=("good", "quite bad")),
                Embed(),
                Score(),
                Json(schema={"type": "nonsense"}),
            ]
        )
        prompt = RenderedPrompt.plain("dog " * dice.choice([1, 5, 20, 400]), trusted=True)
        request = Request(
            prompt=prompt,
            head=head,
            baseline=dice.choice([None, RenderedPrompt.plain("N/A")]),
            seed=number,
            deadline=dice.choice([None, time.time() + dice.choice([0.0, 100.0])]),
        )
        futures.append(engine.submit(request))
        if dice.random() < 0.2:
            engine.cancel(dice.choice([request.id, f"req_{number}"]))
    wait(futures, 120)
    assert all(future.done() for future in futures)
    assert sum(not f.cancelled() and f.exception() is None for f in futures) > 100
    engine.submit(ask((5, 6), 1)).result(30)
    stats = engine.stats()
    assert (stats["slots_used"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert not len(engine._intake)


def test_stats_and_token_counts(tiny, make_engine):
    engine = make_engine("gpt2")
    engine.submit(ask(tiny.prompt_ids(5), 4)).result(30)
    stats = engine.stats()
    assert stats.keys() >= {
        "running", "waiting", "peak_running", "slots", "slots_used", "kv_tokens", "steps",
        "requests", "tokens_in", "tokens_out", "cached_tokens", "prefix_hits", "step_ms",
        "tokens_per_second", "model", "dtype", "device",
    }  # fmt: skip
    assert stats["model"] == "gpt2"
    assert stats["dtype"] == "float32"
    assert stats["step_ms"] > 0
    prompt = RenderedPrompt.plain("The dog")
    assert engine.count_tokens(prompt) == len(tiny.vocabulary.encode(prompt))
    assert engine.model.context == 256
