"""Packing rows into messages, and the set of their numbers."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given

from gptflow.number_set import NumberSet
from gptflow.packing import ITEMS_PER_MESSAGE, TOKENS_PER_MESSAGE, Packer, estimate_tokens

sizes = st.lists(st.integers(0, TOKENS_PER_MESSAGE * 2), max_size=300)


def pack(tokens: list[int]) -> list[list[int]]:
    packer: Packer[int] = Packer()
    messages = [packer.add(number, size) for number, size in enumerate(tokens)]
    return [list(message) for message in (*messages, packer.rest()) if message]


@given(sizes)
def test_every_row_is_in_one_message_and_no_message_is_too_large(tokens: list[int]) -> None:
    messages = pack(tokens)
    assert [number for message in messages for number in message] == list(range(len(tokens)))
    for message in messages:
        assert len(message) <= ITEMS_PER_MESSAGE
        assert len(message) == 1 or sum(tokens[n] for n in message) <= TOKENS_PER_MESSAGE


@given(sizes)
def test_no_message_could_have_taken_the_next_row(tokens: list[int]) -> None:
    messages = pack(tokens)
    for message, after in itertools.pairwise(messages):
        more = sum(tokens[n] for n in (*message, after[0]))
        assert len(message) == ITEMS_PER_MESSAGE or more > TOKENS_PER_MESSAGE


def test_a_token_is_four_bytes_of_utf_8() -> None:
    assert estimate_tokens("x" * 400) == 100
    assert estimate_tokens("股" * 400) == 300
    assert estimate_tokens("\ud800" * 4) == 3


@given(st.lists(st.integers(0, 3000)))
def test_a_set_of_numbers_is_a_set(numbers: list[int]) -> None:
    plain: set[int] = set()
    compact = NumberSet()
    for number in numbers:
        assert compact.add(number) == (number not in plain)
        plain.add(number)
    assert len(compact) == len(plain)
    assert all((number in compact) == (number in plain) for number in range(3001))
