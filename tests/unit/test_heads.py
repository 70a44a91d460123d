"""Heads refuse what cannot be computed, when they are declared."""

import dataclasses

import pytest
from pydantic import BaseModel

from gptflow.heads import (
    Choices,
    Choose,
    Chosen,
    Classify,
    Continuation,
    Embed,
    Generate,
    Generated,
    Json,
    MultiHead,
    Score,
    Tag,
    Usage,
)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": 5.1}, "temperature 5.1"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"repetition_penalty": 0.05}, "repetition_penalty 0.05"),
        ({"repetition_penalty": 11}, "repetition_penalty 11"),
        ({"n": 0}, "n is 0"),
        ({"n": 65}, "n is 65"),
        ({"stop": ("",)}, "non-empty"),
        ({"stop": ("x",) * 17}, "up to 16"),
        ({"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_generate_names_the_option_that_is_out_of_range(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Generate(**options)


@pytest.mark.parametrize("head", [Choose, Classify, Tag])
@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (("only",), "at least two"),
        ((), "at least two"),
        (("a", "a"), "twice"),
        (("a", " "), "blank"),
        (["a", "b"], "must be a tuple, not list"),
        ("ab", "must be a tuple, not str"),
    ],
)
def test_labels_are_several_distinct_words(head, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        head(labels=labels)


def test_a_verbalizer_belongs_to_a_label():
    with pytest.raises(ValueError, match=r"\['maybe'\]"):
        Choose(labels=("yes", "no"), verbalizers={"maybe": "Perhaps"})


def test_a_label_is_scored_by_its_verbalizer_where_it_has_one():
    head = Choose(labels=("pos", "neg"), verbalizers={"pos": "good"})
    assert head.texts == ("good", "neg")


def test_classify_falls_back_to_choosing_among_the_same_labels():
    head = Classify(labels=("a", "b"), verbalizers={"a": "first"}, adapter="mine")
    assert head.as_choose() == Choose(labels=("a", "b"), verbalizers={"a": "first"})


def test_score_needs_two_different_answers():
    with pytest.raises(ValueError, match="must differ"):
        Score(yes="Yes", no="Yes")
    with pytest.raises(ValueError, match="must differ"):
        Score(no="")


def test_multihead_needs_a_head():
    with pytest.raises(ValueError, match="at least one"):
        MultiHead(heads={})


def test_json_takes_a_schema_or_a_pydantic_class():
    class Person(BaseModel):
        name: str

    assert Json(schema=Person).json_schema == Person.model_json_schema()
    assert Json(schema={"type": "string"}).json_schema == {"type": "string"}
    with pytest.raises(ValueError, match="max_tokens"):
        Json(schema=Person, max_tokens=0)


def test_heads_are_values_that_cannot_be_changed():
    assert Embed() == Embed(pooling="mean", normalize=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Embed().pooling = "last"


def test_raw_answers_read_as_what_they_are():
    generated = Generated(continuations=(Continuation(text="one"), Continuation(text="two")))
    assert generated.text == "one"
    chosen = Chosen(label="a", probs={"a": 1.0})
    assert Choices(by_head={"mood": chosen})["mood"] is chosen


def test_usage_adds_up():
    total = Usage(tokens_in=3, tokens_out=1, cached=2) + Usage(tokens_in=4, tokens_out=2)
    assert total == Usage(tokens_in=7, tokens_out=3, cached=2)
