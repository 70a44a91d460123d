"""The engine's life: queueing, closing, what it tells."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import wait

from gptflow.errors import (
    AdapterNotFound,
    EngineError,
    EngineStopped,
    UnsupportedHead,
)
from gptflow.heads import Choose, Classify, Embed, Generate, Json, MultiHead, Score, Tag
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request


def test_more_requests_than_slots(tiny, make_engine):
    engine = make_engine(slots=3)
    futures = [engine.submit(tiny.ask(tiny.prompt_ids(5 + i), 10)) for i in range(20)]
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
    long = engine.submit(tiny.ask(tiny.prompt_ids(5), 240, on_delta=lambda _: decoding.set()))
    assert decoding.wait(30)
    engine.submit(tiny.ask(tiny.prompt_ids(9), 2)).result(30)
    assert not long.done()
    assert engine.cancel("no such request") is False
    long.cancel()


def test_interactive_requests_overtake_batches(tiny, make_engine):
    engine = make_engine(slots=1)
    pause = tiny.Pause(engine)
    order: list[str] = []
    futures = []
    classes = ("standard", "batch", "batch", "standard", "interactive")
    for number, job_class in enumerate(classes):
        future = engine.submit(tiny.ask(tiny.prompt_ids(6), 2, job_class=job_class))
        future.add_done_callback(lambda _, n=number: order.append(n))
        futures.append(future)
        if number == 0:
            assert pause.reached.wait(30)
    pause.release()
    wait(futures, 30)
    # The first one was running when the others came, and made room for the interactive one.
    assert order == [4, 0, 3, 1, 2]


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
    pause = tiny.Pause(engine)
    first = engine.submit(tiny.ask(tiny.prompt_ids(5), 3, id="twice"))
    second = engine.submit(tiny.ask(tiny.prompt_ids(5), 3, id="twice"))
    assert isinstance(second.exception(30), EngineError)
    pause.release()
    assert first.result(30)


def test_close_fails_what_is_in_flight(tiny, make_engine):
    engine = make_engine(slots=1)
    assert engine.healthy
    begun = threading.Event()
    futures = [engine.submit(tiny.ask(tiny.prompt_ids(5), 250, on_delta=lambda _: begun.set()))]
    futures += [engine.submit(tiny.ask(tiny.prompt_ids(6), 250)) for _ in range(3)]
    assert begun.wait(30)
    engine.close()
    futures.append(engine.submit(tiny.ask(tiny.prompt_ids(5), 1)))
    for future in futures:
        assert isinstance(future.exception(30), EngineStopped)
    assert not engine.healthy
    engine.close()


def test_a_callback_may_close_the_engine(tiny, make_engine):
    engine = make_engine()
    future = engine.submit(tiny.ask(tiny.prompt_ids(5), 2))
    future.add_done_callback(lambda _: engine.close())
    assert future.result(30)
    engine._thread.join(30)
    assert not engine._thread.is_alive()


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
    engine.submit(tiny.ask((5, 6), 1)).result(30)
    stats = engine.stats()
    assert (stats["slots_used"], stats["running"], stats["waiting"]) == (0, 0, 0)
    assert not len(engine._intake)


def test_stats_and_token_counts(tiny, make_engine):
    engine = make_engine("gpt2")
    engine.submit(tiny.ask(tiny.prompt_ids(5), 4)).result(30)
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
