"""NumberSet: which of the numbers 0, 1, 2, … have been seen, at a bit each."""

from __future__ import annotations

from collections.abc import Iterable


class NumberSet:
    """A growing set of small whole numbers.

    A set of a batch's rows is kept by whoever waits for them; Python's own takes about 70 bytes
    a number.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._bits = bytearray()
        self._count = 0
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> bool:
        """Put a number in. False if it was there."""
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self._bits):
            self._bits.extend(bytes(max(place + 1 - len(self._bits), len(self._bits))))
        if self._bits[place] & bit:
            return False
        self._bits[place] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count
