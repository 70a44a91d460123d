"""`sentiment.classify` on the default model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import gptflow
from gptflow.errors import ModelNotFound

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def answers() -> Iterator[list[dict[str, Any]]]:
    posts = [
        "Northgate Bank warns of a loss, cuts 300 jobs",
        "Kestrel Chips shares jump 12% as profit beats estimates",
        "Fairhaven Airlines to hold its annual meeting on Friday",
    ]
    try:
        client = gptflow.Client("memory://")
    except ModelNotFound as error:
        pytest.skip(str(error))
    with client:
        results = client.submit_many("sentiment.classify", posts).results(timeout=120)
        yield [result.unwrap() for result in results]


def test_clear_cases_are_told_apart(answers: list[dict[str, Any]]) -> None:
    moods = [answer["sentiment"]["label"] for answer in answers]
    assert moods == ["negative", "positive", "neutral"]


def test_probabilities_of_all_labels_add_up(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        for head, labels in (("sentiment", 3), ("topic", 20)):
            probs = answer[head]["probs"]
            assert len(probs) == labels
            assert sum(probs.values()) == pytest.approx(1)
            assert answer[head]["label"] == max(probs, key=lambda label: probs[label])
