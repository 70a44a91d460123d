"""When two texts are one story."""

from gptflow.monitoring.duplicates import WINDOW, Fingerprint, Stories

STORY = "Northgate Bank warns of a large loss on bad loans and cuts its outlook for the year"


def repeats(first: str, second: str, apart: float = 60.0) -> bool:
    stories = Stories()
    stories.add("first", 1e9, Fingerprint.of(first))
    return stories.find(1e9 + apart, Fingerprint.of(second)) == "first"


def test_links_case_spacing_and_entities_do_not_make_a_story() -> None:
    assert repeats("Banks &amp; insurers SINK", "banks & insurers  sink https://example.com/x")


def test_a_repost_is_the_same_story() -> None:
    assert repeats(STORY, f"RT @desk: {STORY} https://example.com/y")


def test_a_word_more_in_a_long_text_is_still_the_same_story() -> None:
    long = " ".join(f"{word}{tail}" for tail in ("", "ish", "ly", "ness") for word in STORY.split())
    assert Fingerprint.of(long).exact != Fingerprint.of(f"{long} indeed").exact
    assert repeats(long, f"{long} indeed")
    assert not repeats(long, STORY)


def test_another_figure_is_another_story() -> None:
    assert not repeats("$ABCD shares fall 3% after results", "$ABCD shares fall 5% after results")


def test_another_ticker_is_another_story() -> None:
    assert not repeats("$ABCD cut to Hold at a broker today", "$EFGH cut to Hold at a broker today")


def test_short_texts_are_compared_exactly() -> None:
    assert not repeats("up a lot", "up a bit")
    assert repeats("Up a lot", "up a lot")


def test_a_story_is_forgotten_after_the_window() -> None:
    assert repeats(STORY, STORY, apart=WINDOW - 1)
    assert not repeats(STORY, STORY, apart=WINDOW + 1)


def test_the_earliest_story_is_the_original() -> None:
    stories = Stories()
    for number in (3, 1, 2):
        stories.add(f"story-{number}", 1e9 + number, Fingerprint.of(STORY))
    assert stories.find(1e9 + 10, Fingerprint.of(STORY)) == "story-1"


def test_chinese_texts_have_fingerprints_too() -> None:
    assert repeats(
        "贵州茅台三季度净利润同比增长", "贵州茅台三季度净利润同比增长 https://example.com/a"
    )
    assert Fingerprint.of("贵州茅台三季度净利润同比增长").simhash != 0


def test_punctuation_alone_is_told_apart() -> None:
    assert not repeats("!!!", "???")
