"""Cleaning takes out what no reader sees and leaves what people write."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptflow.cleaning import clean, clean_all

anything = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(anything)
@example("\r\x00\n")
@example("\u200b\r\u200b\n")
def test_cleaning_twice_is_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@given(anything)
def test_cleaned_text_can_always_be_encoded(text):
    assert clean(text).encode("utf-8").decode("utf-8") == clean(text)


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_letters_digits_punctuation_and_emoji_stay(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("a\x00b\x07c\x9f", "abc"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("pay\u202eliam", "payliam"),
        ("\u2066x\u2069\u200e\u200f\u061c", "x"),
        ("zero\u200bwidth\ufeff\u2060", "zerowidth"),
        ("\ufdd0x\ufdd1\uffff\U0010ffff", "x"),
        ("broken \ud83d", "broken \ufffd"),
    ],
)
def test_what_goes_and_what_stays(dirty, cleaned):
    assert clean(dirty) == cleaned


@pytest.mark.parametrize("text", ["👩‍👩‍👧", "می‌خواهم", "क्‍ष", "é", "中文。", "x²"])
def test_joiners_and_marks_that_spell_words_stay(text):
    assert clean(text) == text


def test_every_string_of_a_nested_value_is_cleaned_keys_too():
    value = {"a\x00": ["b\x00", ("c\x00", 1)], "n": None, "f": 1.5, "t": True}
    assert clean_all(value) == {"a": ["b", ["c", 1]], "n": None, "f": 1.5, "t": True}
