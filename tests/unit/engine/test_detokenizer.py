"""Text out of tokens: what a decoder of bytes makes of them, whole and piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from gptflow.engine.detokenizer import Detokenizer


class Bytes:
    """A vocabulary of single bytes, that counts what it is asked to decode."""

    def __init__(self):
        self.decoded = 0

    def __call__(self, tokens):
        self.decoded += len(tokens)
        return bytes(tokens).decode("utf-8", "replace")


class Fallback(Bytes):
    """A vocabulary as SentencePiece has it: words, and bytes for what they do not cover.

    Its decoder gives up all bytes of a run if they are not characters together.
    """

    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

    def __call__(self, tokens):
        self.decoded += len(tokens)
        words = [chr(token) if token < 128 else f"<0x{token:02X}>" for token in tokens]
        return self.decoder.decode(words)


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


@given(st.lists(pieces, max_size=30), st.booleans())
def test_the_pieces_are_the_text_where_bytes_stand_in_for_words(parts, broken):
    raw = b"".join(parts)
    if not broken:
        raw = raw.decode("utf-8", "ignore").encode()
    detokenizer = Detokenizer(Fallback())
    told = [detokenizer.push(byte) for byte in raw]
    told.append(detokenizer.flush())
    assert "".join(told) == detokenizer.text
    # How many marks a run of broken bytes gets is the decoder's affair; words are not.
    assert [c for c in detokenizer.text if c < "\x80"] == [chr(byte) for byte in raw if byte < 128]
    if not broken:
        assert detokenizer.text == raw.decode()


@pytest.mark.parametrize("rest", [b"", b"a", b"\xff\xff\xff"])
def test_a_broken_byte_does_not_break_what_was_whole(rest):
    detokenizer = Detokenizer(Fallback())
    for byte in "\u4e2d".encode() + b"\xff" + rest:
        detokenizer.push(byte)
    detokenizer.flush()
    assert detokenizer.text == "\u4e2d\ufffd" + rest.decode("ascii", "replace")


@pytest.mark.parametrize("vocabulary", [Bytes, Fallback])
@pytest.mark.parametrize("raw", [b"\x80", b"\xff", b"\xf0", b"\xe4\xb8", b"a", "\u4e2d".encode()])
def test_it_costs_as_much_as_there_is_to_decode(vocabulary, raw):
    costs = []
    for times in (100, 1000):
        decode = vocabulary()
        detokenizer = Detokenizer(decode)
        for byte in raw * times:
            detokenizer.push(byte)
        detokenizer.flush()
        if vocabulary is Bytes:
            assert detokenizer.text == (raw * times).decode("utf-8", "replace")
        costs.append(decode.decoded / times)
    assert costs[1] < 1.2 * costs[0]
