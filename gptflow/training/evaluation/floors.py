"""Floors: what a model must beat, computed in the same run on the same rows.

Each function gives answers by the floor's name, ready for `gptflow.training.report`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gptflow.dictionary_tagger import DictionaryTagger
from gptflow.linear_text import Kind, LinearText
from gptflow.training.data.requirements import require_classes
from gptflow.training.data.rows import LABEL, LabelledText, TaggedText
from gptflow.training.evaluation.bm25 import BM25
from gptflow.training.evaluation.labels import Floats, LabelAnswers
from gptflow.training.evaluation.rankings import RankingAnswers, ranks_of
from gptflow.training.evaluation.sessions import (
    Session,
    item_cosines,
    neighbour_scores,
    popularity,
    seen,
)
from gptflow.training.evaluation.tags import TagAnswers

MAJORITY = "majority"
LINEAR: tuple[Kind, ...] = ("naive_bayes", "tfidf_logistic")


def fit_linear(kind: Kind, train: Sequence[LabelledText], head: str = LABEL) -> LinearText:
    """The floor itself, for a task that serves it. Rows without a label for `head` are left out.

    Raises:
        OneClass: fewer than two labels occur.
    """
    rows = [row for row in train if head in row.labels]
    require_classes(rows, head)
    return _fit(kind, tuple(row.text for row in rows), tuple(row.labels[head] for row in rows))


@functools.lru_cache(maxsize=4)  # a training wants the same ones to report, to blend and to serve
def _fit(kind: Kind, texts: tuple[str, ...], labels: tuple[str, ...]) -> LinearText:
    return LinearText.fit(kind, texts, labels)


def fit_dictionary(train: Sequence[TaggedText]) -> DictionaryTagger:
    """The floor itself, for a task that serves it."""
    return DictionaryTagger.fit((row.text, row.spans) for row in train)


def label_floors(
    train: Sequence[LabelledText],
    test: Sequence[LabelledText],
    labels: Sequence[str],
    *,
    head: str = LABEL,
    out_of_scope: str | None = None,
) -> Mapping[str, LabelAnswers]:
    """The majority label, naive Bayes, and TF-IDF with logistic regression.

    Args:
        labels: every label of the head, whether or not a training row has it. Training rows
            with another label are left out.

    Raises:
        OneClass: the training rows have fewer than two labels.
    """
    train = [row for row in train if row.labels.get(head) in labels]
    counts = Counter(row.labels[head] for row in train)
    probs = np.zeros((len(test), len(labels)))
    for column, label in enumerate(labels):
        probs[:, column] = counts[label] / max(counts.total(), 1)
    every = {MAJORITY: probs}
    for kind in LINEAR:
        model = fit_linear(kind, train, head)
        every[kind] = spread(model.probs([row.text for row in test]), model.labels, labels)
    return {
        name: LabelAnswers(
            rows=test,
            labels=tuple(labels),
            probs=found,
            head=head,
            out_of_scope=out_of_scope,
        )
        for name, found in every.items()
    }


def spread(probs: Floats, own: Sequence[str], labels: Sequence[str]) -> Floats:
    """Columns for `own` labels moved to the columns for `labels`; the others are 0."""
    place = {label: column for column, label in enumerate(labels)}
    wide = np.zeros((len(probs), len(labels)))
    for column, label in enumerate(own):
        if label in place:
            wide[:, place[label]] = probs[:, column]
    return wide


def tag_floors(train: Sequence[TaggedText], test: Sequence[TaggedText]) -> Mapping[str, TagAnswers]:
    """A dictionary of the training rows' spans."""
    tagger = fit_dictionary(train)
    spans = [[(s.start, s.end, s.label) for s in tagger.spans(row.text)] for row in test]
    return {tagger.kind: TagAnswers.from_spans(test, spans)}


def retrieval_floors(
    passages: Sequence[str], questions: Sequence[str], right: Sequence[int]
) -> Mapping[str, RankingAnswers]:
    """BM25 over words, or characters and pairs of them where words are not parted by spaces.

    Args:
        right: per question, the place of its passage.
    """
    index = BM25(passages)
    scores = np.stack([index.scores(question) for question in questions])
    ranks = ranks_of(scores, np.asarray(right, dtype=np.intp))
    return {"bm25": RankingAnswers(ranks=ranks, names=questions, primary="r@1")}


def session_floors(
    train: Sequence[Session], histories: Sequence[Session], right: Sequence[int], items: int
) -> Mapping[str, RankingAnswers]:
    """Popularity and item-to-item neighbours, over all items that the history does not hold.

    Args:
        train: sessions of other users, or of earlier times.
        right: per history, the item that came next.
        items: how many there are.
    """
    targets = np.asarray(right, dtype=np.intp)
    hidden = seen(histories, items)
    popular = np.tile(popularity(train, items), (len(histories), 1))
    neighbours = neighbour_scores(item_cosines(train, items), histories)
    return {
        name: RankingAnswers(ranks=ranks_of(scores, targets, hidden))
        for name, scores in (("popularity", popular), ("item_knn", neighbours))
    }
