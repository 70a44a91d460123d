"""Whoever else is in the batch, every answer is the one that plain transformers gives."""

from __future__ import annotations

import threading

import pytest
import torch

from gptflow.errors import EngineError, InputTooLong, InvalidGrammar
from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Request

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}

ALSO_COMPILED = True


def ask(ids, new, **more):
    return Request(prompt=ids, head=Generate(max_tokens=new), ignore_eos=True, **more)


def tokens(future):
    return future.result(60).continuations[0].tokens


def test_alone(tiny, make_engine, name):
    engine = make_engine(name)
    for length in (1, 2, 33):
        ids = tiny.prompt_ids(length)
        assert tokens(engine.submit(ask(ids, 24))) == tiny.greedy(name, ids, 24)


def test_mixed_batch_with_late_arrivals(tiny, make_engine, name):
    engine = make_engine(name, slots=6, step_tokens=24, prefill_tokens=24)
    decoding = threading.Event()
    first = ask(tiny.prompt_ids(20), 60, on_delta=lambda _: decoding.set())
    futures = {(20, 60): engine.submit(first)}
    assert decoding.wait(30)
    others = [
        engine.submit(Request(prompt=tiny.prompt_ids(50), head=Embed())),
        engine.submit(Request(prompt=RenderedPrompt.plain("Mood?"), head=Json(schema=SCHEMA))),
        engine.submit(
            Request(prompt=tiny.prompt_ids(30), head=Choose(labels=("good", "very bad news")))
        ),
    ]
    for length, new in ((3, 40), (70, 10), (41, 33), (9, 25), (100, 5), (64, 50), (12, 1)):
        futures[length, new] = engine.submit(ask(tiny.prompt_ids(length), new))
    for (length, new), future in futures.items():
        assert tokens(future) == tiny.greedy(name, tiny.prompt_ids(length), new), length
    assert [future.exception(30) for future in others] == [None] * 3
    assert engine.stats()["slots_used"] == 0


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_chunked_prefill(tiny, make_engine, name, rows):
    ids = tiny.prompt_ids(90)
    engine = make_engine(name, prefill_tokens=rows)
    assert tokens(engine.submit(ask(ids, 12))) == tiny.greedy(name, ids, 12)


def test_prefix_hit(tiny, make_engine, name):
    engine = make_engine(name)
    prompt = Prompt("The quick brown fox jumps over the lazy dog.\nText: {{ text }}\nAnswer:")
    texts = ("the dog sleeps", "the dog sleeps", "shares fell", "ten percent of it")
    answers = []
    for text in texts:
        rendered = prompt.render({"text": text})
        answer = engine.submit(
            Request(prompt=rendered, head=Generate(max_tokens=12), ignore_eos=True)
        ).result(60)
        ids = tiny.vocabulary.encode(rendered)
        assert answer.continuations[0].tokens == tiny.greedy(name, ids, 12)
        answers.append(answer)
    assert [answer.usage.cached > 8 for answer in answers] == [False, True, True, True]
    assert engine.stats()["prefix_hits"] == 3


def test_bare_token_ids_share_with_the_same_tenant_only(tiny, make_engine, name):
    engine = make_engine(name)
    shared = tiny.prompt_ids(40)
    cached = []
    for number, tenant in enumerate(("a", "a", "a", "b", "b", "b")):
        ids = shared + tiny.prompt_ids(10, seed=number)
        answer = engine.submit(ask(ids, 8, tenant=tenant)).result(60)
        assert answer.continuations[0].tokens == tiny.greedy(name, ids, 8)
        cached.append(answer.usage.cached)
    assert [count >= 40 for count in cached] == [False, False, True] * 2


def test_next_to_failing_requests(tiny, make_engine, name):
    engine = make_engine(name)
    good = [engine.submit(ask(tiny.prompt_ids(n), 20)) for n in (5, 25)]
    long = engine.submit(ask(tiny.prompt_ids(256), 20))
    broken = engine.submit(Request(prompt=tiny.prompt_ids(5), head=Json(schema={"type": 7})))
    strange = engine.submit(ask((1, 2, 10**6), 5))
    assert isinstance(long.exception(30), InputTooLong)
    assert "256" in str(long.exception())
    assert isinstance(broken.exception(30), InvalidGrammar)
    assert isinstance(strange.exception(30), EngineError)
    for n, future in zip((5, 25), good, strict=True):
        assert tokens(future) == tiny.greedy(name, tiny.prompt_ids(n), 20)


def test_a_row_of_nan_fails_alone(tiny, make_engine):
    poison = 9
    model = tiny.make_model("llama", "poisoned")
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
        model.get_output_embeddings().weight[poison] = 0
    engine = make_engine(model=model, slots=2)
    ids = tiny.prompt_ids(30)
    expected = tokens(engine.submit(ask(ids, 20)))
    samples = Generate(n=3, temperature=1.0)
    for head in (Generate(), samples, Embed(), Score(), Choose(labels=("good", "bad"))):
        neighbour = engine.submit(ask(ids, 20))
        bad = engine.submit(Request(prompt=(*ids[:20], poison, *ids[20:]), head=head))
        assert "not a number" in str(bad.exception(30))
        assert tokens(neighbour) == expected
        # Both slots are used again: none may remember the NaN.
        again = [engine.submit(ask(ids, 20)) for _ in range(2)]
        assert [tokens(future) for future in again] == [expected] * 2
    assert engine.stats()["slots_used"] == 0


def test_after_neighbours_are_cancelled(tiny, make_engine, name):
    engine = make_engine(name, slots=4)
    begun = [threading.Event() for _ in range(3)]
    leaving = [
        engine.submit(ask(tiny.prompt_ids(10 + i), 200, on_delta=lambda _, e=e: e.set()))
        for i, e in enumerate(begun)
    ]
    staying = engine.submit(ask(tiny.prompt_ids(40), 60))
    for event, future in zip(begun, leaving, strict=True):
        assert event.wait(30)
        assert future.cancel()
    assert tokens(staying) == tiny.greedy(name, tiny.prompt_ids(40), 60)
    late = engine.submit(ask(tiny.prompt_ids(41), 10))
    assert tokens(late) == tiny.greedy(name, tiny.prompt_ids(41), 10)
    assert engine.stats()["slots_used"] == 0


def test_embeddings(tiny, make_engine, name):
    engine = make_engine(name, prefill_tokens=16)
    decoder = tiny.reference(name).get_decoder()
    for length in (1, 50):
        ids = tiny.prompt_ids(length)
        with torch.inference_mode():
            hidden = decoder(torch.tensor([ids])).last_hidden_state[0]
        for pooling, pooled in (("mean", hidden.mean(0)), ("last", hidden[-1])):
            for normalize in (True, False):
                head = Embed(pooling=pooling, normalize=normalize)
                vector = torch.tensor(
                    engine.submit(Request(prompt=ids, head=head)).result(30).vector
                )
                expected = pooled / pooled.norm() if normalize else pooled
                torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)
