"""Names in the store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import ModelNotFound
from gptflow.models.name import check_name, is_hub_id, is_name, make_name


@given(st.text())
def test_whatever_it_is_made_from_a_name_is_one(text):
    assert is_name(make_name(text))


@given(st.text(alphabet="abc./-_", min_size=1))
def test_what_is_a_name_stays_as_it_is_and_stays_in_its_folder(text):
    if is_name(text):
        assert make_name(text) == text
        assert "/" not in text
        assert ".." not in text


def test_names_of_hub_ids():
    assert make_name("HuggingFaceTB/SmolLM2-135M") == "huggingfacetb--smollm2-135m"
    long = [make_name("org/" + "x" * 90 + end) for end in "ab"]
    assert long[0] != long[1]


def test_what_is_a_hub_id():
    assert is_hub_id("org/name-1.5_x")
    assert not any(map(is_hub_id, ["name", "a/b/c", "../x", "a/..", "a/b\n", "https://x/y", "/x"]))


def test_a_bad_name_says_what_a_good_one_has():
    with pytest.raises(ModelNotFound, match="a-z"):
        check_name("No Good")
