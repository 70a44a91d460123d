"""Requests that arrive together compute the beginning that they share once."""

from __future__ import annotations

import pytest

from gptflow.heads import Generate
from gptflow.prompt import Prompt
from gptflow.request import Request

PROMPT = Prompt(
    "The quick brown fox jumps over the lazy dog. Answer with one word.\n{{ text }}\nIt:"
)
TEXTS = ("the dog sleeps", "shares fell", "profit rose", "the sun is warm", "Ada", "36")


@pytest.fixture
def burst(make_engine):
    """An engine that begins only when all requests are there, as it does after a cold start."""

    def submit(*, classes=(), **settings):
        engine = make_engine("llama", **settings)
        engine.submit(Request(prompt=(20, 21, 22), head=Generate(max_tokens=1))).result(30)
        with engine._intake._changed:
            return engine, [
                engine.submit(
                    Request(
                        prompt=PROMPT.render({"text": text}),
                        head=Generate(max_tokens=6),
                        ignore_eos=True,
                        job_class=job_class,
                    )
                )
                for text, job_class in zip(TEXTS, classes or ["standard"] * 6, strict=True)
            ]

    return submit


def ids_of(tiny, text):
    return tiny.vocabulary.encode(PROMPT.render({"text": text}))


def check(tiny, futures):
    answers = [future.result(30) for future in futures]
    for text, answer in zip(TEXTS, answers, strict=True):
        assert answer.continuations[0].tokens == tiny.greedy("llama", ids_of(tiny, text), 6)
    return [answer.usage.cached for answer in answers]


@pytest.mark.parametrize("rows", [7, 32, 1024])
def test_all_but_the_first_copy_the_template(tiny, burst, rows):
    _, futures = burst(prefill_tokens=rows)
    cached = check(tiny, futures)
    assert cached.count(0) == 1
    assert len(set(cached)) == 2
    assert max(cached) > 20


def test_when_the_first_is_cancelled_another_takes_over(tiny, burst):
    _, futures = burst(prefill_tokens=7)
    futures[0].cancel()
    for text, future in list(zip(TEXTS, futures, strict=True))[1:]:
        tokens = future.result(30).continuations[0].tokens
        assert tokens == tiny.greedy("llama", ids_of(tiny, text), 6)


def test_the_urgent_do_not_wait_for_the_less_urgent(tiny, burst):
    _, futures = burst(classes=("batch", "batch", "standard", "interactive", "batch", "batch"))
    cached = check(tiny, futures)
    assert cached[3] == 0  # the most urgent one goes first, and the others follow it
    assert cached.count(0) == 1


def test_more_requests_than_slots(tiny, burst):
    _, futures = burst(slots=2)
    assert check(tiny, futures).count(0) == 1
