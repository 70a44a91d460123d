"""Securities found in posts, and their place in the text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow_sentiment_monitoring.tickers import find_mentions


@pytest.mark.parametrize(
    ("text", "tickers"),
    [
        ("$AAPL and $brk.b rise", ["AAPL", "BRK.B"]),
        ("futures: $CL_F", ["CL.F"]),
        ("Acme (NASDAQ: ACME) and Delta (NYSE:DAL)", ["ACME", "DAL"]),
        ("茅台600519.SH，平安银行 SZ000001", ["600519.SH", "000001.SZ"]),
        ("某公司（300750）公告", ["300750.SZ"]),
        ("腾讯 0700.HK", ["0700.HK", "0700.HK"]),
        ("Bank of America beats JPMorgan", ["BAC", "JPM"]),
        ("贵州茅台三季度净利润", ["600519.SH"]),
    ],
)
def test_securities_are_found(text: str, tickers: list[str]) -> None:
    assert [mention.ticker for mention in find_mentions(text)] == tickers


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 or US$AB",
        "a$AAPL",
        "pineapples and Applebee",
        "order number 600519 of 2026",
        "phone 13800600519",
        "call 1234567.SH",
        "$TOOLONGTICKER",
    ],
)
def test_what_only_looks_like_one_is_left(text: str) -> None:
    assert find_mentions(text) == []


def test_of_overlapping_mentions_the_longest_stays() -> None:
    (mention,) = find_mentions("Morgan Stanley")
    assert (mention.ticker, mention.kind) == ("MS", "company")


@given(st.text(alphabet="$APL. (NYSE:)600519SHZ茅台", max_size=60))
def test_places_are_of_the_text_and_never_overlap(text: str) -> None:
    mentions = find_mentions(text)
    assert all(text[m.start : m.end] == m.text for m in mentions)
    assert all(a.end <= b.start for a, b in pairwise(mentions))
