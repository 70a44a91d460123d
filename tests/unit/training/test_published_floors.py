"""The floors of public data sets, recomputed: naive Bayes, BM25, neighbours, popularity.

The figures to agree with were computed by other code. Where the test file at hand is a random
half of the published one, they must be within the half's interval; else within a point.
"""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest

from gptflow.training.data.duplicates import find_leaks
from gptflow.training.data.reading import labelled, tagged
from gptflow.training.data.source import Source
from gptflow.training.evaluation.bootstrap import intervals
from gptflow.training.evaluation.floors import (
    label_floors,
    retrieval_floors,
    session_floors,
    tag_floors,
)

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def data(request):
    folder = request.config.getoption("--data-folder")
    if not folder.is_dir():
        pytest.skip(f"the public data sets are not in {folder}: give --data-folder")
    return folder


def lines(path, encoding="utf-8"):
    with gzip.open(path, "rt", encoding=encoding) as file:
        yield from file


@pytest.mark.parametrize(
    ("train", "test", "accuracy", "macro_f1"),
    [
        (
            "twitter_fin_sentiment/sent_train.csv.gz",
            "twitter_fin_sentiment/sent_valid.csv.gz",
            0.810,
            0.741,
        ),
        (
            "twitter_fin_topic/topic_train.csv.gz",
            "twitter_fin_topic/topic_valid.csv.gz",
            0.819,
            0.772,
        ),
        ("banking77/train.csv.gz", "banking77/test.csv.gz", 0.858, 0.858),
    ],
)
def test_naive_bayes_agrees_and_logistic_regression_is_the_higher_floor(
    data, train, test, accuracy, macro_f1
):
    rows, asked = labelled(data / train).require(), labelled(data / test).require()
    names = sorted({row.labels["label"] for row in rows})
    floors = label_floors(rows, asked, names)
    found = intervals(floors["naive_bayes"], resamples=500)
    assert found["accuracy"].low <= accuracy <= found["accuracy"].high
    assert found["macro_f1"].low <= macro_f1 <= found["macro_f1"].high
    linear = floors["tfidf_logistic"].metrics()
    assert linear["accuracy"] > found["accuracy"].value > floors["majority"].metrics()["accuracy"]
    assert linear["macro_f1"] > found["macro_f1"].value


@pytest.mark.parametrize(("language", "first"), [("en", 0.919), ("zh", 0.931)])
def test_bm25_agrees_in_english_and_chinese(data, language, first):
    with gzip.open(data / f"xquad_en_zh/xquad.{language}.json.gz") as file:
        articles = json.load(file)["data"]
    paragraphs = [each for article in articles for each in article["paragraphs"]]
    questions = [
        (question["question"], place)
        for place, paragraph in enumerate(paragraphs)
        for question in paragraph["qas"]
    ]
    asked, right = zip(*questions, strict=True)
    found = retrieval_floors([each["context"] for each in paragraphs], asked, right)["bm25"]
    assert found.metrics()["r@1"] == pytest.approx(first, abs=0.01)


def test_neighbours_and_popularity_agree_on_web_sessions(data):
    """One visit of each user is held out at random: the file does not say when they were."""

    def sessions(name):
        found = []
        for line in lines(data / f"uci_msweb/{name}.gz", "latin-1"):
            if line.startswith("C,"):
                found.append([])
            elif line.startswith("V,"):
                found[-1].append(int(line.split(",")[1]))
        return found

    train, asked = sessions("anonymous-msweb.data"), sessions("anonymous-msweb.test")
    number = {item: n for n, item in enumerate(sorted({i for s in train + asked for i in s}))}
    train = [[number[item] for item in session] for session in train]
    asked = [[number[item] for item in session] for session in asked if len(session) > 1]
    assert len(asked) == 3453
    generator = random.Random(0)
    held = [generator.randrange(len(session)) for session in asked]
    right = [session[place] for session, place in zip(asked, held, strict=True)]
    histories = [s[:place] + s[place + 1 :] for s, place in zip(asked, held, strict=True)]
    floors = session_floors(train, histories, right, len(number))
    neighbours, popular = (floors[name].metrics() for name in ("item_knn", "popularity"))
    assert neighbours["hr@10"] == pytest.approx(0.746, abs=0.01)
    assert neighbours["ndcg@10"] == pytest.approx(0.517, abs=0.01)
    assert popular["hr@10"] == pytest.approx(0.636, abs=0.015)
    assert popular["ndcg@10"] == pytest.approx(0.405, abs=0.015)
    # Shuffled targets must take the figures down to chance: nothing leaks from target to score.
    np.random.default_rng(0).shuffle(right)
    shuffled = session_floors(train, histories, right, len(number))["item_knn"].metrics()
    assert shuffled["hr@10"] < neighbours["hr@10"] - 0.1


@pytest.mark.parametrize(
    ("train", "test", "figure"),
    [
        ("wnut17/train.conll.gz", "wnut17/test.conll.gz", 0.032),
        # "Lender" and "Borrower" are two thirds of the spans, so looking up is hard to beat.
        ("sec_filings_ner/FIN5_train.txt.gz", "sec_filings_ner/FIN3_test.txt.gz", 0.812),
    ],
)
def test_the_dictionary_tagger_is_as_good_as_it_was(data, train, test, figure):
    source = Source(format="conll")
    rows = tagged(data / train, source).require()
    asked = tagged(data / test, source).require()
    found = tag_floors(rows, asked)["dictionary"].metrics()
    assert found["entity_f1"] == pytest.approx(figure, abs=0.001)


def test_a_sixth_of_the_topic_test_is_in_its_training_data(data):
    """What they are worth to a model that remembers: three points of accuracy to naive Bayes."""
    rows = labelled(data / "twitter_fin_topic/topic_train.csv.gz").require()
    asked = labelled(data / "twitter_fin_topic/topic_valid.csv.gz").require()
    leaks = find_leaks(rows, asked)
    assert len(leaks) == pytest.approx(384, abs=2)
    assert sum(leak.kind == "exact" for leak in leaks) == pytest.approx(323, abs=2)
