"""Envelopes: what comes from outside is checked, what goes out comes back the same."""

import json
import math
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.envelope import Envelope, Item, new_id
from gptflow.errors import InvalidInput

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
common = {
    "task": text,
    "key": st.none() | text,
    "tenant": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    "job_class": st.sampled_from(["interactive", "standard", "batch"]),
    "seed": st.none() | st.integers(0, 2**63 - 1),
    "stream": st.booleans(),
    "deadline": st.none() | st.floats(0, 1e12),
    "not_before": st.none() | st.floats(0, 1e12),
    "trace": st.dictionaries(text, text, max_size=2),
}
items = st.builds(Item, index=st.integers(0, 9), custom_id=text, input=st.none() | values)
envelopes = (
    st.builds(Envelope, input=values, **common)
    | st.builds(Envelope, input_ref=text, **common)
    | st.builds(
        Envelope,
        items=st.lists(items, max_size=3).map(tuple),
        batch=st.builds(new_id, st.just("batch")),
        **common,
    )
)


@given(envelopes)
def test_an_envelope_comes_back_from_the_wire_as_it_was(envelope):
    assert Envelope.from_wire(json.loads(json.dumps(envelope.to_wire()))) == envelope


def test_the_wire_form_leaves_out_what_is_at_its_default():
    envelope = Envelope(task="a.b", input={"text": "x"}, job_class="batch")
    assert envelope.to_wire() == {
        "v": 1,
        "id": envelope.id,
        "task": "a.b",
        "input": {"text": "x"},
        "class": "batch",
    }


def test_a_version_from_the_future_is_refused_with_what_to_do():
    with pytest.raises(InvalidInput, match="version 99") as caught:
        Envelope.from_wire({"v": 99, "task": "a.b", "input": 1})
    assert caught.value.hint == "Upgrade the worker."


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "'task' is missing"),
        ({"task": "a.b"}, "exactly one of input, input_ref and items"),
        ({"task": "a.b", "input": 1, "input_ref": "k"}, "exactly one"),
        ({"task": "a.b", "items": []}, "items and batch go together"),
        ({"task": "a.b", "input": 1, "batch": new_id("batch")}, "items and batch"),
        ({"task": "a.b", "input": 1, "surprise": 1}, "'surprise' is not a known field"),
        (
            {"task": "a.b", "input": 1, "class": "urgent"},
            "'class' must be 'interactive', 'standard' or",
        ),
        ({"task": "a.b", "input": 1, "id": "job_../../etc"}, "'id' must be text of the form"),
        (
            {"task": "a.b", "input": 1, "tenant": "a b"},
            "'tenant' must be 1 to 64 characters out of A-Z",
        ),
        ({"task": "a.b", "input": 1, "tenant": ""}, "'tenant' must be 1 to 64 characters"),
        ({"task": "a.b", "input": 1, "seed": -1}, "'seed' must be 0 or more"),
        ({"task": "a.b", "input": 1, "deadline": math.nan}, "'deadline' must be a finite number"),
        ({"task": "a" * 129, "input": 1}, "'task' must be at most 128 characters long"),
        (
            {"task": "a.b", "input": 1, "key": "k" * 257},
            "'key' must be at most 256 characters long",
        ),
        ("envelope", "the envelope must be an object, not text"),
        (None, "the envelope must be an object, not null"),
        ([1], "the envelope must be an object, not a list"),
    ],
)
def test_a_malformed_envelope_is_refused_by_field(data, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        Envelope.from_wire(data)


def test_a_malformed_envelopes_content_is_not_in_the_message():
    with pytest.raises(InvalidInput) as caught:
        Envelope.from_wire({"task": {"secret": "words"}, "input": "secret"})
    assert "secret" not in str(caught.value)


def test_ids_are_uuids_of_version_7():
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(new_id().removeprefix("job_"))
    after = time.time_ns() // 1_000_000
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= after


def test_ids_sort_by_the_time_they_were_made():
    ids = []
    for _ in range(3):
        ids.append(new_id())
        tick = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == tick:
            pass
    assert ids == sorted(ids)


def test_ids_do_not_repeat_and_say_what_they_are_of():
    assert len({new_id() for _ in range(10_000)}) == 10_000
    assert new_id("batch").startswith("batch_")
