"""Results travel and come back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import EmptyInput, ErrorInfo, JobCancelled, JobFailed
from gptflow.result import TERMINAL, Provenance, Result

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
counts = st.integers(0, 2**53)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
provenances = st.builds(
    Provenance,
    model=st.fixed_dictionaries({"id": text, "sha256": text}),
    adapter=st.none() | text,
    prompt_sha256=st.none() | text,
    seed=counts,
    tokens_in=counts,
    tokens_out=counts,
    truncated=st.booleans(),
)
results = st.builds(
    Result,
    id=text,
    task=text,
    state=st.sampled_from(sorted(TERMINAL)),
    output=values,
    error=st.none() | st.builds(ErrorInfo, text, text, st.none() | text),
    provenance=st.none() | provenances,
    abstained=st.none() | text,
    warnings=st.lists(text, max_size=3).map(tuple),
    timings=st.dictionaries(text, st.floats(0, 1e6), max_size=3),
)


@given(results)
def test_a_result_comes_back_from_the_wire_as_it_was(result):
    assert Result.from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_the_wire_form_has_the_documented_fields():
    failed = Result.failure("job_1", "a.b", EmptyInput("Nothing.")).as_dict()
    assert failed.pop("timings") == {}
    assert failed == {
        "v": 1,
        "id": "job_1",
        "task": "a.b",
        "state": "failed",
        "output": None,
        "error": {"code": "GF301", "message": "Nothing.", "hint": None},
        "provenance": None,
        "abstained": None,
        "warnings": [],
    }


def test_fields_from_a_newer_worker_are_left_out():
    newer = Result(
        id="job_1",
        task="a.b",
        state="failed",
        error=ErrorInfo("GF301", "m"),
        provenance=Provenance(model={"id": "m"}),
    ).as_dict()
    newer["cost"] = 1
    newer["error"]["link"] = "somewhere"
    newer["provenance"]["engine"] = "new"
    assert Result.from_dict(newer).error == ErrorInfo("GF301", "m")


def test_unwrapping_gives_the_output_or_raises_what_happened():
    assert Result(id="j", task="a.b", state="done", output={"x": 1}).unwrap() == {"x": 1}
    with pytest.raises(EmptyInput, match="Nothing"):
        Result.failure("j", "a.b", EmptyInput("Nothing.")).unwrap()
    with pytest.raises(JobFailed, match="ended as expired"):
        Result(id="j", task="a.b", state="expired").unwrap()


def test_a_cancelled_job_is_not_a_failed_one():
    result = Result.failure("j", "a.b", JobCancelled("Stopped."))
    assert (result.state, result.ok) == ("cancelled", False)
