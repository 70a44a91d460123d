"""5. Batches: many inputs of one task, submitted together."""

import pytest

from gptflow.errors import InvalidInput

LABELS = ["good", "bad"]


def rows(*texts):
    return [{"text": text, "labels": LABELS} for text in texts]


def test_results_come_in_the_rows_order(flow):
    batch = flow.submit_many("text.classify", rows("a", "b", "c"))
    results = batch.results(timeout=10)
    assert [result.output["label"] in LABELS for result in results] == [True] * 3


def test_or_each_one_as_soon_as_it_is_there(flow):
    batch = flow.submit_many("text.classify", rows("a", "b", "c"))
    numbers = {number for number, _ in batch.as_completed(timeout=10)}
    assert numbers == {0, 1, 2}


def test_a_row_that_fails_fails_alone(flow):
    batch = flow.submit_many("text.classify", rows("a", "  ", "c"))
    first, second, third = batch.results(timeout=10)
    assert (first.ok, second.ok, third.ok) == (True, False, True)
    assert second.error.code == "GF301"


def test_a_batch_keeps_count(flow):
    batch = flow.submit_many("text.classify", rows("a", "  ", "c"))
    batch.results(timeout=10)
    record = batch.record
    assert (record.total, record.done, record.failed, record.finished) == (3, 2, 1, True)


def test_a_row_may_be_a_bare_input_or_carry_an_id_of_its_own(flow):
    batch = flow.submit_many(
        "text.summarize",
        [
            "just text",
            {"text": "fields"},
            {"id": "mine", "text": "fields and an id"},
            {"custom_id": "mine", "input": {"text": "the id apart"}},
        ],
    )
    assert all(result.ok for result in batch.results(timeout=10))


def test_many_rows_travel_in_few_messages(flow, scripted_engine):
    batch = flow.submit_many("text.summarize", [f"Note {n}." for n in range(150)])
    assert len(batch.results(timeout=30)) == 150
    assert len(scripted_engine.requests) == 150


def test_a_batch_is_its_id(flow):
    batch = flow.submit_many("text.summarize", ["a"])
    assert len(flow.batch(batch.id).results(timeout=10)) == 1


def test_an_empty_batch_is_refused(flow):
    with pytest.raises(InvalidInput, match="empty"):
        flow.submit_many("text.summarize", [])
