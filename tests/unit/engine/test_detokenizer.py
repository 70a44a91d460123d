"""Text out of tokens: what a decoder of bytes makes of them, whole and piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.engine.detokenizer import Detokenizer


class Bytes:
    """A vocabulary of single bytes, that counts what it is asked to decode."""

    def __init__(self):
        self.decoded = 0

    def __call__(self, tokens):
        self.decoded += len(tokens)
        return bytes(tokens).decode("utf-8", "replace")


pieces = st.one_of(
    st.text(min_size=1, max_size=3).map(lambda text: text.encode("utf-8", "replace")),
    st.binary(min_size=1, max_size=4),
    st.sampled_from([b"\xf0\x9f\x8c", b"\xe4\xb8", b"\x80" * 9, b"\xff" * 20, b"\xc3" * 17]),
)


@given(st.lists(pieces, max_size=30))
def test_the_pieces_are_the_text(parts):
    raw = b"".join(parts)
    detokenizer = Detokenizer(Bytes())
    told = [detokenizer.push(byte) for byte in raw]
    told.append(detokenizer.flush())
    assert "".join(told) == detokenizer.text == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("raw", [b"\x80", b"\xff", b"\xf0", b"\xe4\xb8", b"a", "\u4e2d".encode()])
def test_it_costs_as_much_as_there_is_to_decode(raw):
    costs = []
    for times in (100, 1000):
        decode = Bytes()
        detokenizer = Detokenizer(decode)
        for byte in raw * times:
            detokenizer.push(byte)
        detokenizer.flush()
        assert detokenizer.text == (raw * times).decode("utf-8", "replace")
        costs.append(decode.decoded / times)
    assert costs[1] < 1.2 * costs[0]
