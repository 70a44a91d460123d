"""`customer.match` as its callers see it: by BM25, and by an adapter where one is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gptflow.adapter import BaseModelRef, ClassifyHead, Manifest, Metric, ScoreHead
from gptflow.adapter_info import AdapterInfo
from gptflow.errors import EmptyInput, GPTFlowError, InvalidInput
from gptflow.testing import ScriptedEngine, TaskContract, examples, run, run_result
from gptflow_customer_service.answer_matching import MAX_REPLY, MatchAnswer, Matches

MATCH = MatchAnswer()
CARD = {"id": "card", "text": "Block your card in the app."}
REFUND = {"id": "refund", "text": "A refund takes five working days."}
QUESTION = "How long does a refund take?"


class Adapted(ScriptedEngine):
    """Has an adapter for answer matching, which likes cards."""

    def __init__(self, head: Any = None, **figures: Metric) -> None:
        super().__init__(score=lambda text: float("card" in text))
        self.manifest = Manifest(
            task=MATCH.name,
            base=BaseModelRef(id="base", sha256=("0" * 64,)),
            heads={"score": head or ScoreHead()},
            metrics=figures,
            primary="mrr",
            files={},
        )

    def adapters(self) -> Mapping[str, AdapterInfo]:
        info = AdapterInfo(
            alias="answer_match", sha256="0" * 64, manifest=self.manifest, rank=0, nbytes=0
        )
        return {"answer_match": info}


def match(question: str, *candidates: Any, engine: ScriptedEngine | None = None) -> Matches:
    given = {"question": question, "candidates": list(candidates)}
    found: Matches = run(MATCH, given, engine=engine)
    return found


def ids(found: Matches) -> list[str]:
    return [each.id for each in found.ranked]


class TestContract(TaskContract):
    task = MATCH


def test_without_an_adapter_bm25_ranks_and_no_model_is_asked() -> None:
    engine = ScriptedEngine()
    found = match(QUESTION, CARD, REFUND, engine=engine)
    assert (ids(found), found.by) == (["refund", "card"], "bm25")
    assert found.ranked[0].score > found.ranked[1].score == 0
    assert not engine.requests


def test_the_examples_are_answered_as_they_say() -> None:
    for row in examples(MATCH):
        expected = [each["id"] for each in row["expected"]["ranked"]]
        assert ids(run(MATCH, row["input"])) == expected


def test_an_adapter_ranks_where_there_is_one() -> None:
    engine = Adapted(mrr=Metric(value=0.6, floor=0.4))
    found = match(QUESTION, REFUND, CARD, engine=engine)
    assert (ids(found), found.by) == (["card", "refund"], "adapter")
    assert [each.score for each in found.ranked] == [1, 0]
    assert {request.head.adapter for request in engine.requests} == {"answer_match"}


@pytest.mark.parametrize(
    "engine",
    [
        Adapted(mrr=Metric(value=0.4, floor=0.4)),
        Adapted(ClassifyHead(labels=("a", "b"))),
    ],
    ids=["no better than bm25", "for something else"],
)
def test_an_adapter_that_is_no_better_or_no_such_head_is_not_asked(engine: Adapted) -> None:
    found = match(QUESTION, CARD, REFUND, engine=engine)
    assert (ids(found), found.by) == (["refund", "card"], "bm25")
    assert not engine.requests


def test_equal_candidates_keep_their_order_and_get_their_places_as_ids() -> None:
    found = match("?!", "the of", "😀", {"id": "a", "text": "for"})
    assert ids(found) == ["0", "1", "a"]
    assert {each.score for each in found.ranked} == {0}


def test_the_adapter_sees_no_personal_data_and_the_beginning_of_long_replies() -> None:
    engine = Adapted()
    match("Hello?\n\n  my mail is ada@example.org ", "x" * 2 * MAX_REPLY, engine=engine)
    [prompt] = engine.prompts
    assert prompt.startswith("Hello?\nmy mail is <email>\nReply: x")
    assert prompt.count("x") == MAX_REPLY


def test_a_long_question_loses_its_beginning() -> None:
    engine = Adapted()
    given = {"question": "long " * 3000 + "the end", "candidates": [CARD]}
    result = run_result(MATCH, given, engine=engine)
    assert result.provenance is not None
    assert result.provenance.truncated
    assert "the end\nReply:" in engine.prompts[0]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"question": " ", "candidates": [CARD]}, EmptyInput, "question"),
        ({"question": "a", "candidates": [{"text": ""}]}, EmptyInput, "text"),
        ({"question": "a", "candidates": []}, InvalidInput, "candidates"),
        ({"question": "a", "candidates": ["b"] * 51}, InvalidInput, "candidates"),
        ({"question": "a", "candidates": [CARD, CARD]}, InvalidInput, "'card'"),
        ({"question": "a", "candidates": ["b", {"id": "0", "text": "c"}]}, InvalidInput, "'0'"),
        ("a", InvalidInput, "candidates"),
    ],
)
def test_bad_input_is_refused(given: Any, error: type[GPTFlowError], says: str) -> None:
    result = run_result(MATCH, given)
    assert result.error is not None
    assert result.error.code == error.code
    assert says in result.error.message
