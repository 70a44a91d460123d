"""Personal data in rows: found, counted and masked, never shown.

What has a check digit must pass it, so that an order number is not taken for a card. Borders are
look-arounds, as `\\b` finds none between a digit and a Han character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

PersonalKind = Literal["email", "card", "iban", "prc_id", "phone", "ip_address"]

_PRC_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_PRC_DIGITS = "10X98765432"


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = "0246813579"
    total = sum(
        int(doubled[int(digit)]) if place % 2 else int(digit)
        for place, digit in enumerate(reversed(digits))
    )
    return total % 10 == 0


def passes_iban(text: str) -> bool:
    """Whether the check digits fit (ISO 13616: the number modulo 97 is 1)."""
    plain = re.sub(r"\s", "", text).upper()
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def passes_prc_id(text: str) -> bool:
    """Whether the last character of a Chinese identity number fits (ISO 7064, MOD 11-2)."""
    total = sum(w * int(digit) for w, digit in zip(_PRC_WEIGHTS, text[:17], strict=True))
    return _PRC_DIGITS[total % 11] == text[17].upper()


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return len(set(digits)) > 1 and passes_luhn(digits)


def _is_address(text: str) -> bool:
    return all(int(part) <= 255 for part in text.split("."))


def _always(text: str) -> bool:
    return True


def _alone(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9.+])(?:{pattern})(?![A-Za-z0-9])")


# The most particular first: what one has taken, none below sees.
_FINDERS: tuple[tuple[PersonalKind, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "email",
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}"
            r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
        ),
        _always,
    ),
    ("iban", _alone(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"), passes_iban),
    (
        "prc_id",
        _alone(r"[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"),
        passes_prc_id,
    ),
    ("card", _alone(r"\d(?:[ -]?\d){12,18}"), _is_card),
    ("phone", _alone(r"(?:(?:\+|00)86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}"), _always),
    (
        "phone",
        re.compile(r"(?<![A-Za-z0-9+])(?:\+|00)[1-9](?:[ ./()-]{0,2}\d){7,14}(?!\d)"),
        _always,
    ),
    ("phone", _alone(r"(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}|0\d{2,3}-\d{7,8}"), _always),
    ("ip_address", _alone(r"\d{1,3}(?:\.\d{1,3}){3}"), _is_address),
)


def find(text: str) -> Iterator[tuple[int, int, PersonalKind]]:
    """Start, end and kind of each, in the order of the text; none overlaps another."""
    taken: list[tuple[int, int, PersonalKind]] = []
    for kind, pattern, is_valid in _FINDERS:
        for match in pattern.finditer(text):
            start, end = match.span()
            free = all(end <= other or stop <= start for other, stop, _ in taken)
            if free and is_valid(match[0]):
                taken.append((start, end, kind))
    yield from sorted(taken)


def count(text: str) -> Mapping[PersonalKind, int]:
    """How many of each kind."""
    return Counter(kind for _, _, kind in find(text))


def mask(text: str) -> str:
    """The text with `<email>`, `<card>` and so on in their places."""
    pieces: list[str] = []
    place = 0
    for start, end, kind in find(text):
        pieces += [text[place:start], f"<{kind}>"]
        place = end
    return "".join([*pieces, text[place:]])
