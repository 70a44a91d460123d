"""What a post's text says of itself."""

import pytest

from gptflow_sentiment_monitoring.text import (
    for_model,
    guess_language,
    has_words,
    is_poorly_tokenised,
)


def test_entities_links_and_spacing_are_resolved_for_the_model() -> None:
    given = "Banks &amp; insurers\n sink  https://example.com/a?b=1 ＡＢ"
    assert for_model(given) == "Banks & insurers sink <url> AB"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Shares fall", "en"),
        ("$AAPL 股价大跌", "zh"),
        ("株価が下がる", "ja"),
        ("주가 하락", "ko"),
        ("Акции падают", "ru"),
        ("$AAPL beats, says 李", "en"),
        ("123 !!!", "und"),
    ],
)
def test_languages_are_told_by_script(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_languages_of_many_tokens_are_known() -> None:
    assert is_poorly_tokenised("zh-CN")
    assert not is_poorly_tokenised("en")


def test_links_are_no_words() -> None:
    assert not has_words("https://example.com/abc 123")
    assert has_words("up https://example.com")
