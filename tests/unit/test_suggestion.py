"""Suggestions: a name that does not exist is answered with what it may have meant."""

from __future__ import annotations

import pytest

from gptflow.suggestion import did_you_mean

NAMES = ("smollm2-135m-instruct", "gemma-3-270m", "text.chat", "text.classify", "text.score")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("text.chta", "'text.chat'"),
        ("classify", "'text.classify'"),
        ("smolm2", "'smollm2-135m-instruct'"),
        ("SmolLM2-135M-Instruct", "'smollm2-135m-instruct'"),
        ("Gemma", "'gemma-3-270m'"),
    ],
)
def test_the_nearest_name_is_suggested(typed: str, meant: str) -> None:
    assert did_you_mean(typed, NAMES) == f"Did you mean {meant}?"


@pytest.mark.parametrize("typed", ["", "t", "zzz", "llama"])
def test_nothing_is_suggested_where_nothing_is_near(typed: str) -> None:
    assert did_you_mean(typed, NAMES) is None


def test_a_few_names_with_that_beginning_are_all_suggested() -> None:
    names = ("smollm2-135m-instruct", "smollm2-360m-instruct")
    hint = "Did you mean 'smollm2-135m-instruct' or 'smollm2-360m-instruct'?"
    assert did_you_mean("smolm2", names) == hint


def test_a_beginning_that_too_many_share_suggests_none_of_them() -> None:
    assert did_you_mean("text", [f"text.{verb}_something" for verb in "abcd"]) is None
