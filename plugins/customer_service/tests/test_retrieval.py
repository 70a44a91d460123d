"""Retrieval and matching: what is found, and how sure that is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gptflow.errors import ConfigError
from gptflow_customer_service.calibration import calibrate, fit, measure, read_questions
from gptflow_customer_service.knowledge import LOCALES, Knowledge
from gptflow_customer_service.matching import SCALES, Matcher
from gptflow_customer_service.retrieval import Index

XQUAD = Path(__file__).parents[4] / "shared" / "data" / "xquad_en_zh"


def test_the_knowledge_base_has_over_sixty_synthetic_entries_in_both_languages(
    knowledge: Knowledge,
) -> None:
    assert len(knowledge.of("en")) == len(knowledge.of("zh")) >= 60
    for locale in LOCALES:
        for entry in knowledge.of(locale):
            assert entry.synthetic
            assert all(knowledge.translated(entry, other).locale == other for other in LOCALES)


def test_a_malformed_entry_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "knowledge.jsonl"
    path.write_text('{"id": "a.en"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        Knowledge.load(path)


def test_every_stored_question_finds_its_own_entry(knowledge: Knowledge, matcher: Matcher) -> None:
    for locale in LOCALES:
        for entry in knowledge.of(locale):
            for question in (entry.question, *entry.paraphrases):
                match = matcher.match(question, locale)[0]
                assert (match.entry.id, match.confidence) == (entry.id, 1.0)


def test_chinese_is_found_by_single_characters_and_by_pairs() -> None:
    index = Index(["退款需要五个工作日", "信用卡年费", "今天天气很好"])
    assert index.search("年费")[0].position == 1
    assert index.search("款")[0].position == 0


def test_equal_scores_come_in_the_order_of_the_index() -> None:
    index = Index(["red apple", "green apple", "blue apple", "pear"])
    assert [hit.position for hit in index.search("apple")] == [0, 1, 2]


@pytest.mark.parametrize("query", ["", "😀", "the of and", "zzzz"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    assert Index(["red apple", "pear"]).search(query) == []


def test_held_out_paraphrases_are_found_and_close_matches_are_right(
    matcher: Matcher, questions: Path
) -> None:
    held_out = [row for row in read_questions(questions) if row.split == "test"]
    english, chinese = (measure(matcher, held_out, locale) for locale in LOCALES)
    assert english.first >= 0.72
    assert chinese.first >= 0.90
    assert english.close >= 0.5
    assert chinese.close >= 0.7
    for figures in (english, chinese):
        assert figures.close_right >= 0.97
        assert figures.stray == 0


def test_a_fit_recovers_where_right_and_wrong_are_equally_likely() -> None:
    scale = fit([(x / 10, x / 10 > 2) for x in range(41)])
    assert scale(2.05) == pytest.approx(0.5, abs=0.03)
    assert scale(3.5) > 0.8 > 0.2 > scale(0.5)


def test_calibration_uses_the_calibration_questions_only(
    knowledge: Knowledge, questions: Path
) -> None:
    # A few entries suffice: each one is left out in turn, with an index of its own.
    some = Knowledge([*knowledge.of("en")[:6], *knowledge.of("zh")[:6]])
    rows = read_questions(questions)
    without_test = [row for row in rows if row.split != "test"]
    assert calibrate(some, rows, "en") == calibrate(some, without_test, "en")


def test_the_shipped_scales_rise_with_the_score() -> None:
    for locale in LOCALES:
        assert SCALES[locale](0.0) < 0.15
        assert SCALES[locale](6.0) > 0.95


@pytest.mark.skipif(not XQUAD.is_dir(), reason="the XQuAD data are not on this machine")
@pytest.mark.parametrize(("locale", "floor"), [("en", 0.91), ("zh", 0.92)])
def test_the_right_paragraph_of_xquad_is_ranked_first(locale: str, floor: float) -> None:
    with gzip.open(XQUAD / f"xquad.{locale}.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    index = Index([paragraph["context"] for paragraph in paragraphs])
    found = [
        [hit.position for hit in index.search(entry["question"], k=1)] == [number]
        for number, paragraph in enumerate(paragraphs)
        for entry in paragraph["qas"]
    ]
    assert sum(found) / len(found) >= floor
