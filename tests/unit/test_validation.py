"""Validation: what is wrong with which field, in plain words and without the value."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from gptflow.errors import InvalidInput
from gptflow.validation import check_seconds, explain


def _even(number: int) -> int:
    if number % 2:
        raise ValueError("it is odd.")
    return number


def _weekday(name: str) -> str:
    raise PydanticCustomError("calendar", "no day of the week")


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    text: str = Field("", max_length=3)


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")

    turns: tuple[Turn, ...] = Field((Turn(role="user"),), min_length=1)
    number: int = Field(0, ge=0, le=4096)
    share: FiniteFloat = Field(0.5, gt=0)
    flag: bool = False
    name: str = Field("a", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    word: str = Field("a", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    code: str = Field("ab", pattern=r"^[a-z]+(-[0-9]{2})*$|^ab$")
    weights: dict[str, float] = {}
    either: float | str | list[str] = ""
    when: datetime | None = None
    even: Annotated[int, AfterValidator(_even)] = 2
    day: Annotated[str, AfterValidator(_weekday)] = "monday"


def complaint(data: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate(data)
    return explain(caught.value, data, whole="the input")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the input must be an object, not a list"),
        ({"nmae": "x"}, "'nmae' is not a known field"),
        ({"turns": [{}]}, "'turns[0].role' is missing"),
        ({"turns": "x"}, "'turns' must be a list, not text"),
        ({"turns": []}, "'turns' must be 1 or more items long"),
        ({"turns": [{"role": "judge"}]}, "'turns[0].role' must be 'user' or 'assistant'"),
        (
            {"turns": [{"role": 1}]},
            "'turns[0].role' must be 'user' or 'assistant', not a whole number",
        ),
        (
            {"turns": [{"role": "user", "text": "four"}]},
            "'turns[0].text' must be at most 3 characters long, not 4",
        ),
        ({"number": "many"}, "'number' must be a whole number, not text"),
        ({"number": 2.5}, "'number' must be a whole number, not a decimal number"),
        ({"number": 5000}, "'number' must be 4096 or less"),
        ({"share": float("nan")}, "'share' must be a finite number"),
        ({"share": 0}, "'share' must be more than 0"),
        ({"flag": "perhaps"}, "'flag' must be true or false, not text"),
        ({"name": "a b"}, "'name' must be 1 to 64 characters out of A-Z a-z 0-9 _ . -"),
        (
            {"word": "-a"},
            "'word' must be 1 to 63 characters out of a-z 0-9 _ -, "
            "beginning with one out of a-z 0-9",
        ),
        ({"code": "A"}, "'code' must be text of the form ^[a-z]+(-[0-9]{2})*$|^ab$"),
        ({"weights": {"price": "low"}}, "'weights.price' must be a number, not text"),
        ({"either": {}}, "'either' must be a number or text or a list, not an object"),
        ({"when": "soon"}, "'when' must be a date and time in ISO 8601"),
        ({"when": []}, "'when' must be a date and time in ISO 8601, not a list"),
        ({"even": 3}, "'even' does not fit: it is odd"),
        ({"day": "x"}, "'day' does not fit: no day of the week"),
    ],
)
def test_a_field_is_told_what_it_must_be_and_what_came(data: Any, says: str) -> None:
    assert complaint(data) == says


def test_several_fields_are_told_in_one_sentence_and_the_rest_counted() -> None:
    wrong = {"number": -1, "share": -1, "flag": "x", "name": "", "even": 1}
    assert complaint(wrong) == (
        "'number' must be 0 or more; 'share' must be more than 0; "
        "'flag' must be true or false, not text; and 2 more"
    )


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(min_size=1).map("SECRET".__add__),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(Everything.model_fields)), values, min_size=1))
def test_neither_the_value_nor_pydantics_words_are_in_the_message(data: dict[str, Any]) -> None:
    try:
        Everything.model_validate(data)
    except ValidationError as error:
        told = explain(error, data, whole="the input")
        for leak in ("SECRET", "Input", "should", "valid ", "parse", "required"):
            assert leak not in told


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_a_span_that_no_clock_can_measure_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="timeout must be a finite number of seconds"):
        check_seconds(seconds)


@pytest.mark.parametrize("seconds", [None, 0, 0.5, 3600])
def test_any_other_span_will_do(seconds: float | None) -> None:
    check_seconds(seconds)
