"""Futures: what one keeps alive, and what is true once it is settled."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from gptflow.engine.pending import Pending
from gptflow.engine.sequence import Sequence
from gptflow.errors import EngineError
from gptflow.heads import Choose, Embed, Generate, Json
from gptflow.request import Request


def storages():
    """Bytes of all tensors that anybody can reach."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def alive(kind):
    gc.collect()
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


HEADS = (
    Embed(pooling="last"),
    Embed(),
    Choose(labels=("good", "quite bad")),
    Generate(max_tokens=3, n=2),
    Json(schema={"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}),
    Json(schema={"enum": ["not in so few tokens"]}, max_tokens=2),
)


def test_kept_futures_keep_nothing_but_their_answers(tiny, make_engine):
    engine = make_engine(prefix_bytes=0)
    engine.submit(Request(prompt=tiny.prompt_ids(20), head=Embed())).result(30)
    before = storages(), alive(Pending), alive(Sequence)
    futures = [
        engine.submit(Request(prompt=tiny.prompt_ids(200, seed), head=head))
        for seed, head in enumerate(HEADS * 4)
    ]
    for future in futures:
        assert future.exception(30) is None or isinstance(future.exception(0), EngineError)
    engine.submit(Request(prompt=tiny.prompt_ids(20), head=Embed())).result(30)
    engine.close()  # what is under way there holds what it works on
    assert (alive(Pending), alive(Sequence)) <= before[1:]
    assert storages() - before[0] < 20_000
    assert len(futures) == 24


def test_a_pooled_vector_does_not_keep_its_step(tiny, make_engine):
    engine = make_engine()
    kept = []
    original = type(engine._outcomes).end

    def end(outcomes, sequence):
        kept.append(sequence._pooled.untyped_storage().nbytes())
        original(outcomes, sequence)

    engine._outcomes.end = end.__get__(engine._outcomes)
    for pooling in ("last", "mean"):
        head = Embed(pooling=pooling)
        engine.submit(Request(prompt=tiny.prompt_ids(200), head=head)).result(30)
    assert kept == [48 * 4] * 2


def test_whoever_has_the_answer_may_use_the_id_again(tiny, make_engine):
    engine = make_engine()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            assert engine.submit(Request(id="mine", prompt=(5, 6), head=Embed())).result(30)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("head", [Json(schema={"enum": ["ab"]}, max_tokens=1), Embed()])
def test_an_error_brings_no_frames_along(tiny, make_engine, monkeypatch, head):
    engine = make_engine()
    if isinstance(head, Embed):
        monkeypatch.setattr(engine._runner, "forward", lambda chunks: 1 / 0)
    error = engine.submit(Request(prompt=(5, 6), head=head)).exception(30)
    assert error.__traceback__ is None
