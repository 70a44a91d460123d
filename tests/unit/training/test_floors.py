"""Floors: what simple models answer, checked against scikit-learn and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gptflow.errors import AdapterCorrupt, EmptyData, OneClass
from gptflow.linear_text import TERMS, WEIGHTS, LinearText
from gptflow.terms import search_terms, terms
from gptflow.training.data.rows import LabelledText, Origin, ScoredPair, TaggedText
from gptflow.training.data.tokens import align
from gptflow.training.evaluation.bm25 import BM25
from gptflow.training.evaluation.floors import (
    fit_dictionary,
    fit_linear,
    label_floors,
    retrieval_floors,
    session_floors,
    tag_floors,
)
from gptflow.training.evaluation.pairs import pair_floors, rank_pairs
from gptflow.training.evaluation.sessions import item_cosines, neighbour_scores, popularity

pytest.importorskip("sklearn")

ORIGIN = Origin("t", 1)
WORDS = {
    "up": ["shares rose sharply", "stock rose again", "股票大涨", "profits rose"],
    "down": ["shares fell sharply", "stock fell again", "股票大跌", "profits fell"],
    "flat": ["shares were unchanged", "nothing moved today", "股票没有变化", "a quiet day"],
}


def rows(words=WORDS):
    return [
        LabelledText(origin=ORIGIN, text=text, labels={"label": label})
        for label, texts in words.items()
        for text in texts
    ]


@pytest.mark.parametrize("kind", ["naive_bayes", "tfidf_logistic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_floors_answer_as_scikit_learn_does(kind, classes):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    train = rows(dict(list(WORDS.items())[:classes]))
    texts, labels = [r.text for r in train], [r.labels["label"] for r in train]
    if kind == "naive_bayes":
        steps = [CountVectorizer(analyzer=terms), MultinomialNB(alpha=0.1)]
    else:
        steps = [
            CountVectorizer(analyzer=lambda text: terms(text, marks=True)),
            TfidfTransformer(sublinear_tf=True),
            LogisticRegression(C=10.0, tol=1e-3),
        ]
    pipeline = make_pipeline(*steps).fit(texts, labels)
    asked = ["stock rose and rose sharply", "shares fell", "股票涨", "unheard of", ""]
    model = fit_linear(kind, train)
    assert model.labels == tuple(pipeline.classes_)
    assert model.probs(asked) == pytest.approx(pipeline.predict_proba(asked), abs=1e-6)


def test_the_same_rows_are_fitted_once():
    model = fit_linear("naive_bayes", rows())
    assert fit_linear("naive_bayes", rows()) is model
    assert fit_linear("naive_bayes", rows()[1:]) is not model


@pytest.mark.parametrize("kind", ["naive_bayes", "tfidf_logistic"])
def test_a_floor_reads_back_as_it_was(tmp_path, kind):
    model = fit_linear(kind, rows())
    model.save(tmp_path)
    back = LinearText.load(tmp_path)
    texts = ["shares rose", "股票大跌", ""]
    assert back.probs(texts) == pytest.approx(model.probs(texts), abs=1e-5)
    assert back.vocabulary == model.vocabulary


def test_a_floor_that_was_tampered_with_is_refused(tmp_path):
    fit_linear("naive_bayes", rows()).save(tmp_path)
    described = json.loads((tmp_path / TERMS).read_text())
    (tmp_path / TERMS).write_text(json.dumps(described | {"terms": described["terms"][1:]}))
    with pytest.raises(AdapterCorrupt, match="another shape"):
        LinearText.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(AdapterCorrupt, match="cannot be read"):
        LinearText.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterCorrupt):
        LinearText.load(tmp_path)


def test_label_floors_answer_every_test_row_with_every_label():
    test = rows({"up": ["shares rose"], "down": ["stock fell"]})
    found = label_floors([*rows(), rows()[0]], test, ("up", "down", "flat", "never"))
    assert set(found) == {"majority", "naive_bayes", "tfidf_logistic"}
    assert found["majority"].predicted == ("up", "up")
    assert found["naive_bayes"].predicted == ("up", "down")
    assert found["tfidf_logistic"].predicted == ("up", "down")
    for answers in found.values():
        assert answers.probs.sum(axis=1) == pytest.approx([1, 1])


def test_training_rows_without_a_label_for_the_head_are_left_out():
    train = [*rows(), LabelledText(origin=ORIGIN, text="x", labels={"other": "y"})]
    assert "y" not in fit_linear("naive_bayes", train).labels


def test_one_class_is_no_floor():
    with pytest.raises(OneClass):
        label_floors(rows({"up": ["a", "b"]}), rows({"up": ["a"]}), ("up", "down"))


def test_chinese_is_searched_by_characters_and_pairs():
    assert search_terms("股票大涨 up 5") == [
        "股",
        "票",
        "大",
        "涨",
        "up",
        "5",
        "股票",
        "票大",
        "大涨",
    ]


def test_bm25_by_hand():
    """Two passages of three words; idf and weight of "cat" worked out on paper."""
    scores = BM25(["cat sat here", "dog sat there"], k1=1.2, b=0.75).scores("the cat")
    idf = np.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert scores == pytest.approx([idf * 2.2 / 2.2, 0.0])


def test_the_right_passage_comes_first_in_both_languages():
    passages = ["The cat sat on the mat.", "黑豹队的防守丢了308分。", "Rain fell in the night."]
    found = retrieval_floors(passages, ["Who sat on a mat?", "防守丢了多少分？"], [0, 1])
    assert found["bm25"].ranks.tolist() == [1, 1]
    assert found["bm25"].primary == "r@1"


def test_neighbours_by_hand():
    train = [[0, 1], [0, 1], [0, 2], [3]]
    cosines = item_cosines(train, 4)
    assert cosines[0, 1] == pytest.approx(2 / np.sqrt(3 * 2))
    assert cosines[0, 2] == pytest.approx(1 / np.sqrt(3 * 1))
    assert cosines[0, 0] == cosines[0, 3] == 0
    assert popularity(train, 4).tolist() == [3, 2, 1, 1]
    assert neighbour_scores(cosines, [[1, 2]])[0, 0] == pytest.approx(cosines[0, 1] + cosines[0, 2])


def test_what_was_seen_is_not_ranked():
    found = session_floors([[0, 1], [0, 1], [0, 2]], [[0], [1]], [2, 0], 4)
    assert found["popularity"].ranks.tolist() == [2, 1]
    assert found["item_knn"].ranks.tolist() == [2, 1]


def pair(query, candidate, score):
    return ScoredPair(origin=ORIGIN, query=query, candidate=candidate, score=score)


def test_scored_pairs_are_ranked_within_their_query():
    pairs = [
        pair("reset my card", "You can reset the card here.", 1.0),
        pair("reset my card", "We are open on Monday.", 0.0),
        pair("opening hours", "You can reset the card here.", 0.0),
        pair("opening hours", "We are open on Monday.", 1.0),
        pair("only right ones", "Yes.", 1.0),
    ]
    assert rank_pairs(pairs, [0.9, 0.1, 0.5, 0.5, 0.0]).ranks.tolist() == [1, 2]
    floor = pair_floors(pairs)["bm25"]
    assert floor.ranks.tolist() == [1, 2]  # "opening" is not "open": a tie counts against
    assert list(floor.texts) == ["reset my card", "opening hours"]
    with pytest.raises(EmptyData):
        rank_pairs(pairs[-1:], [1.0])


def tagged(words, tags):
    text, tokens = align(words.split())
    return TaggedText(origin=ORIGIN, text=text, tokens=tokens, tags=tuple(tags.split()))


def test_the_dictionary_prefers_long_phrases_and_frequent_labels():
    train = [
        tagged("New York rose", "B-LOC I-LOC O"),
        tagged("York fell", "B-PER O"),
        tagged("we may go", "O O O"),
        tagged("in May or may or may", "O B-TIME O O O O"),
    ]
    tagger = fit_dictionary(train)
    found = tagger.spans("new york and York may")
    assert [(s.text, s.label, s.start, s.end) for s in found] == [
        ("new york", "LOC", 0, 8),
        ("York", "PER", 13, 17),
    ]
    assert [s.score for s in found] == [1, 0.5]
    [answers] = tag_floors(train, train).values()
    assert answers.metrics()["entity_precision"] == 1.0
