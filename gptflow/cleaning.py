"""What is taken out of user text before anything reads it.

Removed: control characters other than newline and tab, invisible characters that reorder or
hide text (bidirectional controls, zero-width space, byte-order marks), and Unicode
noncharacters. A lone surrogate, which no encoding can carry, becomes U+FFFD. Joiners stay:
emoji and several scripts are spelt with them.
"""

from __future__ import annotations

import re
from typing import Any

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_REMOVED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters
    "\u200b\u2060\ufeff"  # zero-width space, word joiner, byte-order mark
    "\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c"  # bidirectional controls
    f"{_NONCHARACTERS}]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """The text without what is listed above, with every line ending as a newline."""
    if text.isascii() and text.isprintable():  # most are, and need no look at each pattern
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _SURROGATE.sub("\ufffd", _REMOVED.sub("", text))


def clean_all(value: Any) -> Any:
    """`clean` applied to every string in a JSON-like value, keys included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean_all(key): clean_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_all(item) for item in value]
    return value
