"""Entities: the securities that a post names, found by rule, with their place in the text."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["cashtag", "ticker", "company"]

_CASHTAG = re.compile(r"(?<![\w$])\$([A-Za-z]{1,6}(?:[._-][A-Za-z]{1,2})?)(?!\w)")
_LISTED = re.compile(
    r"(?<!\w)(?:NASDAQ|NYSE(?: American| Arca)?|AMEX|OTCQ[BX]|TSXV?|LSE|ASX|HKEX|SEHK|SSE|SZSE)"
    r"\s?:\s?([A-Z0-9]{1,6}(?:\.[A-Z]{1,2})?)(?!\w)"
)
_SUFFIXED = re.compile(r"(?<![\w.])(\d{6})\.(SH|SS|SZ|BJ)(?!\w)", re.IGNORECASE | re.ASCII)
_PREFIXED = re.compile(r"(?<![A-Za-z0-9])(SH|SZ|BJ)\.?(\d{6})(?!\d)", re.IGNORECASE)
_HONG_KONG = re.compile(r"(?<![\w.])(\d{4,5})\.HK(?!\w)", re.IGNORECASE | re.ASCII)
_BRACKETED = re.compile(r"[(（](\d{6})[)）]")

_BOARDS = {"6": "SH", "0": "SZ", "3": "SZ", "4": "BJ", "8": "BJ"}
"""The exchange of a bare A-share code, by its first digit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """Characters `start:end` of the text name the security `ticker`."""

    text: str
    kind: Kind
    ticker: str
    start: int
    end: int


def find_mentions(text: str) -> list[Mention]:
    """All mentions in the order of the text; of overlapping ones the longest.

    Found are cash-tags (`$AAPL`), listings (`NASDAQ: AAPL`), A-share and Hong Kong codes
    (`600519.SH`, `SZ000001`, `（600519）`, `0700.HK`), and names from `companies.tsv`.
    """
    taken = 0
    mentions = []
    for mention in sorted(_all(text), key=lambda m: (m.start, -m.end)):
        if mention.start >= taken:
            mentions.append(mention)
            taken = mention.end
    return mentions


def _all(text: str) -> Iterator[Mention]:
    for match in _CASHTAG.finditer(text):
        yield _mention(match, "cashtag", match[1].upper().replace("_", "."))
    for match in _LISTED.finditer(text):
        yield _mention(match, "ticker", match[1])
    for match in _SUFFIXED.finditer(text):
        yield _mention(match, "ticker", f"{match[1]}.{match[2].upper().replace('SS', 'SH')}")
    for match in _PREFIXED.finditer(text):
        yield _mention(match, "ticker", f"{match[2]}.{match[1].upper()}")
    for match in _HONG_KONG.finditer(text):
        yield _mention(match, "ticker", f"{match[1]}.HK")
    for match in _BRACKETED.finditer(text):
        if board := _BOARDS.get(match[1][0]):
            yield Mention(match[1], "ticker", f"{match[1]}.{board}", match.start(1), match.end(1))
    names, companies = _companies()
    for match in names.finditer(text):
        yield _mention(match, "company", companies[match[0]])


def _mention(match: re.Match[str], kind: Kind, ticker: str) -> Mention:
    return Mention(match[0], kind, ticker, match.start(), match.end())


@functools.cache
def _companies() -> tuple[re.Pattern[str], dict[str, str]]:
    """Names to look for, the longest first, and their tickers."""
    lines = Path(__file__).with_name("companies.tsv").read_text(encoding="utf-8").splitlines()
    companies = dict(line.split("\t", 1) for line in lines if line)
    # Chinese names stand next to other letters; Latin ones must be words of their own.
    patterns = (
        re.escape(name) if ord(name[0]) > 0x2FFF else rf"(?<![\w$]){re.escape(name)}(?!\w)"
        for name in sorted(companies, key=len, reverse=True)
    )
    return re.compile("|".join(patterns)), companies
