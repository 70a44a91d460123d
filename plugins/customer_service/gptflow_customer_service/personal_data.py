"""Personal data in what a customer writes: found, counted, and masked.

Boundaries are look-arounds on digits and Latin letters, because `\\b` finds none between a
digit and a Han character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

_EDGE = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"


def _bounded(pattern: str) -> re.Pattern[str]:
    return re.compile(_EDGE[0] + pattern + _EDGE[1])


def luhn(number: str) -> bool:
    """Whether the digits end in their Luhn check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "email",
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}"
            r"@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
        ),
        lambda _: True,
    ),
    ("card", _bounded(r"(?<!\+)\d(?:[ -]?\d){12,18}"), _is_card),
    ("chinese_mobile", _bounded(r"(?:(?:\+|00)86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}"), lambda _: True),
    (
        "phone",
        re.compile(
            r"(?<![A-Za-z0-9+])(?:\+|00)[1-9]\d{0,2}(?:[ ./()-]{0,2}\d){7,12}(?![A-Za-z0-9])"
        ),
        _is_phone,
    ),
    (
        "phone",
        _bounded(r"(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}|0\d{2,3}[ -]\d{7,8}"),
        _is_phone,
    ),
)

KINDS = tuple(dict.fromkeys(kind for kind, _, _ in _KINDS))


def mask(text: str) -> tuple[str, Mapping[str, int]]:
    """The text with `<email>`, `<card>` and so on in place of personal data, and the counts.

    Only what stands its check is masked: sixteen digits are a card number when their Luhn
    digit is right, and may be an order number otherwise.
    """
    counts: Counter[str] = Counter()
    for kind, pattern, is_valid in _KINDS:

        def replace(
            match: re.Match[str], kind: str = kind, is_valid: Callable[[str], bool] = is_valid
        ) -> str:
            if not is_valid(match[0]):
                return match[0]
            counts[kind] += 1
            return f"<{kind}>"

        text = pattern.sub(replace, text)
    return text, dict(counts)


def unmask_words(text: str) -> str:
    """The text without the masks, which are nobody's words."""
    return re.sub(f"<(?:{'|'.join(KINDS)})>", " ", text)
