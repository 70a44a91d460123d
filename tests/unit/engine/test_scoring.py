"""Choose and Score tell the exact log-likelihoods of a plain forward pass."""

from __future__ import annotations

import math

import pytest

from gptflow.engine.scoring import Scoring, choose, log_odds
from gptflow.errors import EngineError
from gptflow.heads import Choose, Score, Usage
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Request

LABELS = ("good", "very bad news", "neutral", "g", "the company reported lower profit")
PROMPT = Prompt("Shares fell by ten percent after the company reported. {{ text }}\nMood:")

ALSO_COMPILED = True


def means(tiny, name, prompt, texts):
    ids = tiny.vocabulary.encode(prompt)
    ends = [tuple(tiny.vocabulary.encode_text(f" {text}")) for text in texts]
    return [tiny.logprob(name, ids, end) / len(end) for end in ends]


@pytest.mark.parametrize("rows", [5, 1024])
def test_choose_equals_a_plain_forward(tiny, make_engine, name, rows):
    engine = make_engine(name, prefill_tokens=rows)
    prompt = PROMPT.render({"text": "the dog sleeps"})
    for _ in range(2):  # the second time on a prefix hit
        chosen = engine.submit(Request(prompt=prompt, head=Choose(labels=LABELS))).result(60)
        expected = means(tiny, name, prompt, LABELS)
        assert list(chosen.scores.values()) == pytest.approx(expected, abs=1e-4)
        assert chosen.label == LABELS[expected.index(max(expected))]
        weights = [math.exp(score) for score in expected]
        assert list(chosen.probs.values()) == pytest.approx(
            [weight / sum(weights) for weight in weights], abs=1e-4
        )
        assert chosen.calibrated is False


def test_choose_with_a_baseline(tiny, make_engine, name):
    engine = make_engine(name)
    prompts = [PROMPT.render({"text": text}) for text in ("the dog", "warm sun", "ten percent")]
    blank = prompts[0].content_free()
    futures = [
        engine.submit(Request(prompt=p, head=Choose(labels=LABELS), baseline=blank))
        for p in prompts
    ]
    base = means(tiny, name, blank, LABELS)
    for prompt, future in zip(prompts, futures, strict=True):
        plain = means(tiny, name, prompt, LABELS)
        expected = [a - b for a, b in zip(plain, base, strict=True)]
        assert list(future.result(60).scores.values()) == pytest.approx(expected, abs=2e-4)
    # Three requests and their one baseline.
    assert engine.stats()["tokens_in"] == sum(map(engine.count_tokens, [*prompts, blank]))
    uncalibrated = Choose(labels=LABELS, calibrate=False)
    chosen = engine.submit(Request(prompt=prompts[0], head=uncalibrated, baseline=blank)).result(60)
    assert list(chosen.scores.values()) == pytest.approx(
        means(tiny, name, prompts[0], LABELS), abs=1e-4
    )


def test_branches_that_do_not_fit_run_in_groups(tiny, make_engine):
    engine = make_engine()
    ids = tiny.prompt_ids(215)
    labels = tuple(f"{word} {LABELS[-1]}" for word in ("quick", "brown", "lazy", "warm", "sun"))
    ends = [tuple(tiny.vocabulary.encode_text(f" {label}")) for label in labels]
    assert 215 + sum(map(len, ends)) > 256
    chosen = engine.submit(Request(prompt=ids, head=Choose(labels=labels))).result(60)
    expected = [tiny.logprob("llama", ids, end) / len(end) for end in ends]
    assert list(chosen.scores.values()) == pytest.approx(expected, abs=1e-4)


def test_verbalizers_are_scored_in_place_of_labels(tiny, make_engine):
    engine = make_engine()
    prompt = RenderedPrompt.plain("The dog is")
    head = Choose(labels=("A", "B"), verbalizers={"A": "good", "B": "bad"})
    scores = engine.submit(Request(prompt=prompt, head=head)).result(60).scores
    expected = means(tiny, "llama", prompt, ("good", "bad"))
    assert scores == pytest.approx(dict(zip("AB", expected, strict=True)), abs=1e-4)


def test_score_is_the_log_odds(tiny, make_engine, name):
    engine = make_engine(name)
    prompt = PROMPT.render({"text": "the dog sleeps"})
    blank = prompt.content_free()

    def odds(prompt):
        ids = tiny.vocabulary.encode(prompt)
        yes, no = (
            tiny.logprob(name, ids, tuple(tiny.vocabulary.encode_text(f" {text}")))
            for text in ("Yes", "No way")
        )
        return yes - no

    head = Score(no="No way")
    plain = engine.submit(Request(prompt=prompt, head=head)).result(60)
    assert plain.values == pytest.approx((odds(prompt),), abs=1e-4)
    calibrated = engine.submit(Request(prompt=prompt, head=head, baseline=blank)).result(60)
    assert calibrated.values == pytest.approx((odds(prompt) - odds(blank),), abs=2e-4)


def test_a_label_takes_the_space_that_the_text_lacks(tiny):
    encode = tiny.vocabulary.encode_continuation
    spaced = tuple(tiny.vocabulary.encode_text(" good"))
    bare = tuple(tiny.vocabulary.encode_text("good"))
    assert encode("good", after="Mood:") == spaced
    assert encode("good", after="Mood:\n") == bare
    assert encode("good", after="Mood: ") == bare
    assert encode("good", after="") == bare
    assert encode(" good", after="Mood:") == spaced


TRIE = (
    "the company reported lower profit",
    "the company reported lower",
    "the company reported higher profit",
    "the dog sleeps on",
    "the",
    "a",
    "a dog",
)


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("room", [44, 256])  # of little room, one group after another
def test_labels_that_begin_alike_share_rows(tiny, make_engine, name, rows, room):
    encode = tiny.vocabulary.encode_continuation
    prompt = PROMPT.render({"text": "the dog"})
    ids = tiny.vocabulary.encode(prompt)
    ends = [encode(text, after="Mood:") for text in TRIE]
    room = max(room, len(ids) + max(map(len, ends))) if room < 256 else room
    engine = make_engine(name, prefill_tokens=rows, slot_tokens=room)
    chosen = engine.submit(Request(prompt=prompt, head=Choose(labels=TRIE))).result(60)
    expected = [tiny.logprob(name, ids, end) / len(end) for end in ends]
    assert list(chosen.scores.values()) == pytest.approx(expected, abs=1e-4)


def test_a_trie_has_one_row_for_every_beginning():
    continuations = ((1, 2, 3), (1, 2, 4, 5), (1, 2, 4, 6), (7,), (1, 2), (8, 2, 3))
    scoring = Scoring((0, 0), continuations, room=50)
    beginnings = {c[:i] for c in continuations for i in range(1, len(c))}
    assert len(scoring.tokens) - 2 == len(beginnings)
    tight = Scoring((0, 0), continuations, room=2 + 3)
    seen = 0
    while not tight.ended:
        assert len(tight.tokens) <= 5
        seen += len(tight.tokens) - tight.done
        tight.done = len(tight.tokens)
        tight.advance()
    assert seen <= 2 + len(beginnings) + 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("head", [Choose(labels=("good", "bad")), Score()])
def test_what_is_no_log_probability_fails_its_request_alone(
    tiny, make_engine, monkeypatch, value, head
):
    engine = make_engine()
    neighbour = engine.submit(tiny.ask(tiny.prompt_ids(5), 40))
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "logprobs", lambda hidden, wanted: [value] * len(wanted))
        error = engine.submit(Request(prompt=(5, 6, 7), head=head)).exception(30)
    assert isinstance(error, EngineError)
    assert (error.code, "not a number" in error.message) == ("GF700", True)
    assert neighbour.result(30).continuations[0].tokens == tiny.greedy(
        "llama", tiny.prompt_ids(5), 40
    )
    assert engine.submit(Request(prompt=(5, 6, 7), head=head)).result(30)


def scored(*logprobs):
    scoring = Scoring((1,), [(2,)] * len(logprobs), room=9)
    for number, value in enumerate(logprobs):
        scoring.add(number, value)
    return scoring


def test_labels_that_cannot_be():
    head = Choose(labels=("a", "b"))
    impossible = choose(head, scored(-math.inf, -3.0), None, Usage())
    assert (impossible.label, impossible.probs) == ("b", {"a": 0.0, "b": 1.0})
    neither = choose(head, scored(-math.inf, -math.inf), None, Usage())
    assert neither.probs == {"a": 0.5, "b": 0.5}
    with pytest.raises(EngineError, match="no probability"):
        choose(head, scored(-math.inf, -1.0), scored(-math.inf, -1.0), Usage())
    with pytest.raises(EngineError, match="no probability"):
        log_odds(scored(-math.inf, -math.inf), None)
