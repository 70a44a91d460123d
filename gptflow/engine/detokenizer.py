"""Text out of tokens, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"
"""What a decoder writes for bytes that are not a whole character yet, or never will be."""

_TAIL = 3
"""Tokens that a character may still lack: it has four bytes at most, and a token at least one."""

_HELD = 8
"""Tokens held back at most before those are taken that no character can lack."""


class Detokenizer:
    """Decodes a continuation as it grows.

    What `push` and `flush` return, joined, is `text`. No piece ends in half a character or
    in what may become a stop string.

    Args:
        decode: token ids to text.
        stop: strings that end the text; they are not part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        self._done = 0  # tokens whose text has been taken
        self._context = 0  # where to start decoding, so that spaces between words come out right
        self._emitted = 0
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain by now."""
        self._tokens.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """Returns what was held back; call it once, at the end."""
        return "" if self.stopped else self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._decode(self._tokens[self._context : self._done])
        after = self._decode(self._tokens[self._context :])
        end = len(self._tokens)
        if not final and after.endswith(_HALF):
            end = self._whole(after) if end - self._done >= _HELD else self._done
            after = self._decode(self._tokens[self._context : end])
        if end > self._done:
            if not after.startswith(before):
                # Some decoders take a run of bytes as broken as a whole: what was whole stays so.
                before, after = "", self._decode(self._tokens[self._done : end])
            self.text += after[len(before) :]
            self._context, self._done = self._done, end
        return self._emit(len(self.text) if final else self._certain())

    def _whole(self, after: str) -> int:
        """Where to part held tokens that decode to `after`, so that it is not between bytes.

        Without this each token of a long run of broken characters would decode all of them.
        """
        last = len(self._tokens)
        for end in range(last - _TAIL, last):
            head = self._decode(self._tokens[self._context : end])
            if head + self._decode(self._tokens[end:]) == after:
                return end
        return last - _TAIL if last - self._done >= 2 * _HELD else self._done

    def _certain(self) -> int:
        """Where the text ends that cannot be the start of a stop string."""
        for start in range(self._emitted, len(self.text)):
            tail = self.text[start:]
            if any(stop.startswith(tail) for stop in self._stop):
                return start
        return len(self.text)

    def _emit(self, end: int) -> str:
        found = [self.text.find(stop, self._emitted) for stop in self._stop]
        if any(at >= 0 for at in found):
            end = min(at for at in found if at >= 0)
            self.text = self.text[:end]
            self.stopped = True
        piece = self.text[self._emitted : end]
        self._emitted = end
        return piece
