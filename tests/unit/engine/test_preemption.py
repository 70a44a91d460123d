"""Pre-emption: whoever loses the slot goes on later as if nothing had happened."""

from __future__ import annotations

import threading

import pytest

from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

SCHEMA = {"type": "array", "items": {"enum": ["alpha", "beta"]}, "maxItems": 6}


class Between:
    """Runs `act` on the engine's thread before its step number `at`."""

    def __init__(self, engine, at, act):
        self._step, self._left, self._act = engine._step, at, act
        engine._step = self

    def __call__(self):
        self._left -= 1
        if self._left == 0:
            self._act()
        self._step()


def disturbed(engine, request, *, at):
    """The request's answer, an interactive one taking its slot before step `at`."""
    urgent = Request(prompt=(5, 6, 7), head=Generate(max_tokens=2), job_class="interactive")
    Between(engine, at, lambda: engine.submit(urgent))
    return engine.submit(request).result(60)


@pytest.mark.parametrize("at", [3, 12])
def test_greedy_tokens_equal_transformers_after_preemption(tiny, make_engine, name, at):
    # In prefill, at step 3 of 5, and in decoding.
    engine = make_engine(name, slots=1, prefill_tokens=8)
    ids = tiny.prompt_ids(35)
    request = Request(prompt=ids, head=Generate(max_tokens=20), ignore_eos=True)
    answer = disturbed(engine, request, at=at)
    assert answer.continuations[0].tokens == tiny.greedy(name, ids, 20)
    assert (answer.usage.tokens_in, answer.usage.tokens_out) == (35, 20)
    stats = engine.stats()
    assert stats["preemptions"] == 1
    assert stats["tokens_in"] == 35 + 3
    kinds = [(event["kind"], event["requests"][0]) for event in engine.events()]
    assert kinds.count(("preempted", request.id)) == 1
    assert kinds.count(("admitted", request.id)) == 2
    assert kinds.count(("first_token", request.id)) == 1


@pytest.mark.parametrize(
    "head",
    [
        Generate(max_tokens=24, temperature=1.3, top_p=0.9, repetition_penalty=1.2, stop=("zqz",)),
        Generate(max_tokens=9, temperature=1.0, n=3),
        Json(schema=SCHEMA, temperature=1.0),
        Choose(labels=("good", "quite bad", "neither one nor the other")),
        Score(),
        Embed(),
    ],
)
def test_other_heads_answer_as_if_undisturbed(make_engine, head):
    settings = {"slots": 1, "prefill_slots": 0, "prefill_tokens": 8}
    texts: list[str] = []
    request = Request(
        prompt=RenderedPrompt.plain("The quick brown fox jumps over the lazy dog and sleeps on."),
        head=head,
        baseline=RenderedPrompt.plain("N/A, which is to say nothing at all"),
        seed=4,
        job_class="batch",
        on_delta=lambda delta: texts.append(delta.text) if delta.sample == 0 else None,
    )
    engine = make_engine(**settings)
    expected = engine.submit(request).result(60)
    alone = "".join(texts)
    steps = engine.stats()["steps"]
    preemptions = 0
    for at in range(2, steps + 1, max(steps // 8, 1)):
        texts.clear()
        engine = make_engine(**settings)
        answer = disturbed(engine, request, at=at)
        preemptions += engine.stats()["preemptions"]
        assert "".join(texts) == alone
        assert answer.usage == expected.usage
        match head:
            case Choose():
                assert answer.label == expected.label
                assert answer.scores == pytest.approx(expected.scores, abs=1e-4)
            case Score():
                assert answer.values == pytest.approx(expected.values, abs=1e-4)
            case Embed():
                assert answer.vector == pytest.approx(expected.vector, abs=1e-5)
            case Json():
                assert answer == expected
            case Generate():
                for ours, theirs in zip(answer.continuations, expected.continuations, strict=True):
                    assert ours.tokens == theirs.tokens
                    assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-4)
    assert preemptions >= 1


def test_a_cancelled_victim_does_not_come_back(tiny, make_engine):
    engine = make_engine(slots=1)
    victim = Request(prompt=tiny.prompt_ids(9), head=Generate(max_tokens=200), ignore_eos=True)
    urgent = Request(
        prompt=tiny.prompt_ids(8), head=Generate(max_tokens=30), ignore_eos=True,
        job_class="interactive", on_delta=lambda _: engine.cancel(victim.id),
    )  # fmt: skip
    begun = threading.Event()
    Between(engine, 5, lambda: (engine.submit(urgent), begun.set()))
    future = engine.submit(victim)
    assert begun.wait(30)
    engine.submit(Request(prompt=(5, 6), head=Generate(max_tokens=1))).result(30)
    assert future.cancelled()
    assert engine.stats()["preemptions"] == 1
    assert engine.stats()["slots_used"] == 0
