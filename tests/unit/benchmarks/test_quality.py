"""The quality gate: what it asks, what it counts, and what passes."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from benchmarks import prompts
from benchmarks.prompts import Question
from benchmarks.quality import CHUNK, Answers, chunks, compare
from gptflow.heads import Chosen
from gptflow.prompt import RenderedPrompt

needs_data = pytest.mark.skipif(
    not prompts.FOLDER.is_dir(), reason="the data sets are not beside this checkout"
)


def question(kind: str = "mood") -> Question:
    return Question(kind, RenderedPrompt.plain("Well?"), ("good", "bad"), "good")


def chosen(good: float, bad: float) -> Chosen:
    label = "good" if good >= bad else "bad"
    return Chosen(label=label, probs={}, scores={"good": good, "bad": bad})


def answers(*pairs: tuple[float, float], loss: float = 3.0) -> Answers:
    return Answers("int8", tuple(chosen(*pair) for pair in pairs), loss, seconds=1.0)


def test_a_label_that_changes_counts_against_agreement_with_its_margin():
    reference = answers((-1.0, -2.0), (-1.0, -1.1))
    found = compare(reference, answers((-1.0, -2.5), (-1.2, -1.1)), [question(), question("b")])
    assert found["agreement"] == 0.5
    assert found["agreement_by_kind"] == {"mood": 1.0, "b": 0.0}
    assert found["max_difference"] == 0.5
    assert found["max_margin_lost"] == pytest.approx(0.1)
    assert found["accuracy"] == 0.5
    assert not found["passed"]


@pytest.mark.parametrize(("change", "passes"), [(0.009, True), (0.011, False), (-0.5, True)])
def test_perplexity_may_rise_by_one_percent(change, passes):
    reference = answers((0.0, -1.0))
    candidate = answers((0.0, -1.0), loss=3.0 + math.log(1 + change))
    found = compare(reference, candidate, [question()])
    assert found["perplexity_change"] == pytest.approx(change, abs=1e-5)
    assert found["passed"] is passes


class _Letters:
    """A vocabulary in which every letter and space is a token."""

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_continuation(self, text: str, *, after: str) -> tuple[int, ...]:
        return tuple(self.encode_text(f" {text}"))


def test_passages_hold_at_most_a_chunk_and_end_at_the_number_asked_for():
    words = " ".join(f"word{i}" for i in range(400))
    found = chunks([words], _Letters(), 1200)  # type: ignore[arg-type]
    assert len(found) == 3
    assert all(passage.tokens < CHUNK for passage in found)
    assert 1150 < sum(passage.tokens for passage in found) <= 1200
    assert found[0].first == "word0"


@needs_data
def test_prompts_are_of_all_kinds_and_the_same_every_time():
    found = prompts.questions(prompts.FOLDER, 80)
    assert Counter(q.kind for q in found) == {
        "mood": 20, "topic": 20, "banking": 10, "assistant": 10, "department": 10, "passage": 10
    }  # fmt: skip
    assert all(question.answer in question.labels for question in found)
    assert {len(q.labels) for q in found if q.kind in ("banking", "assistant")} == {10}
    assert found == prompts.questions(prompts.FOLDER, 80)
