"""The dictionary: phrases of the training rows, looked up."""

from __future__ import annotations

import json

import pytest

from gptflow.dictionary_tagger import DictionaryTagger
from gptflow.errors import AdapterCorrupt
from gptflow.heads import Span


def rows(*marked: str) -> list[tuple[str, list[Span]]]:
    """Texts whose organisations stand in brackets."""
    made = []
    for text in marked:
        plain, spans = "", list[Span]()
        for piece in text.replace("]", "[").split("["):
            if (text + "]").find(f"[{piece}]") >= 0:
                end = len(plain) + len(piece)
                spans.append(Span(text=piece, label="ORG", start=len(plain), end=end))
            plain += piece
        made.append((plain, spans))
    return made


def test_the_longest_phrase_is_found_without_case_wherever_it_stands():
    tagger = DictionaryTagger.fit(rows("[Silicon Bank] lends", "[Silicon Bank N.A.] lends to us"))
    text = "To  SILICON  BANK\nN.A., and (silicon bank)."
    found = [(span.text, span.label) for span in tagger.spans(text)]
    assert found == [("SILICON  BANK\nN.A.", "ORG"), ("silicon bank", "ORG")]
    assert all(text[span.start : span.end] == span.text for span in tagger.spans(text))
    assert tagger.labels == ("ORG",)


def test_chinese_characters_are_tokens():
    tagger = DictionaryTagger.fit(rows("[工商银行]今天上涨"))
    [span] = tagger.spans("昨天工商银行下跌")
    assert (span.start, span.end) == (2, 6)


def test_a_phrase_that_is_seldom_a_span_is_none():
    tagger = DictionaryTagger.fit(
        rows("[Apple] rose", "an apple", "one apple a day", "[Bank] fell")
    )
    assert [span.text for span in tagger.spans("apple bank")] == ["bank"]


def test_a_span_inside_a_token_is_left_out():
    span = Span(text="Bank", label="ORG", start=0, end=4)
    assert DictionaryTagger.fit([("Banking", [span])]).phrases == {}


def test_it_is_read_as_it_was_written():
    tagger = DictionaryTagger.fit(rows("[Bank] fell", "a bank", "[工商银行] rose"))
    assert DictionaryTagger.parse(*tagger.files(), name="x").phrases == tagger.phrases


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps({"kind": "naive_bayes", "phrases": []}).encode(),
        json.dumps({"kind": "dictionary", "phrases": [["bank", "ORG"]]}).encode(),
        json.dumps({"kind": "dictionary", "phrases": [[1, "ORG", 1]]}).encode(),
        json.dumps({"kind": "dictionary", "phrases": [["bank", "ORG", "often"]]}).encode(),
    ],
)
def test_what_is_none_is_refused(content):
    with pytest.raises(AdapterCorrupt, match="cannot be read"):
        DictionaryTagger.parse(content, name="x")
