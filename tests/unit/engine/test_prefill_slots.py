"""Heads that draw nothing: they take no slot of the sequences that decode."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from gptflow.heads import Choose, Classify, Embed, MultiHead, Score, Tag
from gptflow.prompt import Message, RenderedPrompt, Segment
from gptflow.request import Request

ALSO_COMPILED = True

HEADS = {
    "embed": Embed(),
    "choose": Choose(labels=("good", "quite bad")),
    "score": Score(),
    "classify": Classify(labels=("good", "bad"), adapter="trained"),
    "several": MultiHead(heads={"mood": Classify(labels=("good", "bad"))}, adapter="trained"),
    "tag": Tag(labels=("name", "place"), adapter="trained"),
}
TEXT = "the dog sleeps on"
PROMPT = RenderedPrompt(
    (Message(None, (Segment("Tag: ", trusted=True), Segment(TEXT, trusted=False))),)
)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_it_answers_at_once_while_all_slots_decode(tiny, make_engine, tmp_path, kind):
    engine = make_engine(slots=2)
    engine.load_adapter("trained", tiny.write_trained(tmp_path / "trained"))
    begun = [threading.Event() for _ in range(2)]
    decoding = [
        engine.submit(tiny.ask(tiny.prompt_ids(5 + i), 240, on_delta=lambda _, e=event: e.set()))
        for i, event in enumerate(begun)
    ]
    queued = engine.submit(tiny.ask(tiny.prompt_ids(9), 240))
    assert all(event.wait(30) for event in begun)
    request = Request(
        prompt=PROMPT, head=HEADS[kind], text=TEXT, baseline=RenderedPrompt.plain("N")
    )
    answer = engine.submit(request).result(30)
    assert not any(future.done() for future in (*decoding, queued))
    assert answer.usage.tokens_in > 0
    assert engine.stats()["slots_used"] == 2
    for future in (*decoding, queued):
        future.cancel()


def test_what_it_reads_is_accounted_for(tiny, make_engine):
    engine = make_engine(slots=2, prefill_slots=3)
    stats = engine.stats()
    assert (stats["slots"], stats["prefill_slots"]) == (2, 3)
    assert stats["kv_tokens_limit"] == 5 * 256
    futures = [
        engine.submit(Request(prompt=tiny.prompt_ids(200, i), head=Embed())) for i in range(20)
    ]
    assert not wait(futures, 60).not_done
    assert engine.stats()["peak_running"] <= 3
    assert engine.stats()["kv_tokens_reserved"] == 0


def test_without_such_slots_all_share_the_others(tiny, make_engine):
    engine = make_engine(slots=2, prefill_slots=0)
    futures = [
        engine.submit(Request(prompt=tiny.prompt_ids(200, i), head=Embed())) for i in range(9)
    ]
    assert not wait(futures, 60).not_done
    assert engine.stats()["peak_running"] <= 2
