"""Figures: equal to scikit-learn's where it has them, to hand counts where it has not."""

from __future__ import annotations

from itertools import combinations
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import BadLabel, EmptyData
from gptflow.training.data.rows import LabelledText, Origin, TaggedText
from gptflow.training.data.tokens import align
from gptflow.training.report import (
    LabelAnswers,
    RankingAnswers,
    SampleAnswers,
    TagAnswers,
    pass_at_k,
    ranks_of,
)

sklearn = pytest.importorskip("sklearn")
from sklearn import metrics as reference  # noqa: E402

LABELS = ("a", "b", "c", "d")


def labelled(*gold):
    return [
        LabelledText(origin=Origin("t", n), text=f"row {n}", labels={"label": label})
        for n, label in enumerate(gold, 1)
    ]


pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1)


@given(pairs)
def test_label_figures_are_those_of_scikit_learn(both):
    gold, guesses = zip(*both, strict=True)
    answers = LabelAnswers(rows=labelled(*gold), labels=LABELS, predicted=guesses)
    found = answers.metrics()
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(gold, guesses))
    for average in ("macro", "micro", "weighted"):
        expected = reference.f1_score(gold, guesses, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    scores = reference.precision_recall_fscore_support(
        gold, guesses, labels=LABELS, zero_division=0
    )
    for place, row in enumerate(answers.per_class()):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(
            tuple(each[place] for each in scores[:3])
        )
        assert row["support"] == scores[3][place]
    expected = reference.confusion_matrix(gold, guesses, labels=LABELS)
    assert (answers.confusion()[:, :-1] == expected).all()


@given(pairs, st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_figures_of_a_choice_of_rows_are_those_of_the_rows_alone(both, draws):
    gold, guesses = zip(*both, strict=True)
    chosen = np.array([draw % len(gold) for draw in draws])
    whole = LabelAnswers(rows=labelled(*gold), labels=LABELS, predicted=guesses)
    part = LabelAnswers(
        rows=labelled(*(gold[n] for n in chosen)),
        labels=LABELS,
        predicted=tuple(guesses[n] for n in chosen),
    )
    assert whole.metrics(chosen) == pytest.approx(part.metrics())


def test_an_answer_that_is_no_label_is_wrong_and_no_more():
    answers = LabelAnswers(rows=labelled("a", "b"), labels=("a", "b"), predicted=("a", "abstained"))
    assert answers.metrics()["accuracy"] == 0.5
    assert answers.confusion().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_out_of_scope_has_figures_of_its_own():
    answers = LabelAnswers(
        rows=labelled("a", "b", "a", "oos", "oos", "oos"),
        labels=("a", "b", "oos"),
        predicted=("a", "a", "oos", "oos", "oos", "b"),
        out_of_scope="oos",
        scope=np.array([0.9, 0.8, 0.2, 0.1, 0.3, 0.85]),
    )
    found = answers.metrics()
    assert found["in_scope_accuracy"] == pytest.approx(1 / 3)
    assert found["out_of_scope_recall"] == pytest.approx(2 / 3)
    assert found["out_of_scope_precision"] == pytest.approx(2 / 3)
    expected = reference.roc_auc_score([0, 0, 0, 1, 1, 1], -answers.scope)
    assert found["out_of_scope_auroc"] == pytest.approx(expected)


def test_rows_with_unknown_labels_and_no_rows_are_refused():
    with pytest.raises(BadLabel, match="t:2 has the unknown label 'z'"):
        LabelAnswers(rows=labelled("a", "z"), labels=("a", "b"), predicted=("a", "a"))
    with pytest.raises(EmptyData):
        LabelAnswers(rows=[], labels=("a", "b"))
    with pytest.raises(ValueError, match="1 answers to 2 rows"):
        LabelAnswers(rows=labelled("a", "b"), labels=("a", "b"), predicted=("a",))
    with pytest.raises(ValueError, match="are they logits"):
        LabelAnswers(rows=labelled("a"), labels=("a", "b"), probs=np.array([[3.0, -1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        LabelAnswers(rows=labelled("a"), labels=("a", "b"), probs=np.array([[np.nan, 1]]))


def tagged(tags, words=None):
    text, tokens = align(words or [f"w{n}" for n in range(len(tags))])
    return TaggedText(origin=Origin("t", 1), text=text, tokens=tokens, tags=tuple(tags))


def test_spans_count_only_whole_and_of_the_right_type():
    """The example of seqeval's README, and what its strict mode says of it, by hand."""
    rows = [
        tagged(["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"]),
        tagged(["B-PER", "I-PER", "O"]),
    ]
    predicted = (("O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"), ("B-PER", "I-PER", "O"))
    answers = TagAnswers(rows=rows, predicted=predicted)
    found = answers.metrics()
    assert found["entity_f1"] == pytest.approx(0.5)
    assert found["entity_precision"] == found["entity_recall"] == pytest.approx(0.5)
    table = {row["label"]: row for row in answers.entity_report()}
    assert (table["MISC"]["f1"], table["PER"]["f1"]) == (0.0, 1.0)
    assert table["macro"]["f1"] == pytest.approx(0.5)
    assert [table[name]["support"] for name in ("MISC", "PER", "micro")] == [1, 1, 2]


def test_a_stray_inside_tag_is_no_span_in_strict_mode():
    answers = TagAnswers(rows=[tagged(["B-X", "I-X"])], predicted=(("I-X", "I-X"),))
    assert answers.metrics()["entity_f1"] == 0.0
    assert answers.metrics()["token_micro_f1_no_o"] == pytest.approx(0.5)


tag = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])


@given(st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=6))
def test_the_token_report_is_that_of_scikit_learn(sentences):
    rows = [tagged([gold for gold, _ in sentence]) for sentence in sentences]
    predicted = tuple(tuple(guess for _, guess in sentence) for sentence in sentences)
    answers = TagAnswers(rows=rows, predicted=predicted)
    gold = [tag for row in rows for tag in row.tags]
    guesses = [tag for tags in predicted for tag in tags]
    found = answers.metrics()
    assert found["token_accuracy"] == pytest.approx(reference.accuracy_score(gold, guesses))
    assert found["token_macro_f1"] == pytest.approx(
        reference.f1_score(gold, guesses, average="macro", zero_division=0)
    )
    inside = sorted(set(gold + guesses) - {"O"})
    if inside:
        for average in ("micro", "macro"):
            assert found[f"token_{average}_f1_no_o"] == pytest.approx(
                reference.f1_score(gold, guesses, labels=inside, average=average, zero_division=0)
            )
    expected = reference.precision_recall_fscore_support(
        gold, guesses, labels=sorted(set(gold + guesses)), average="weighted", zero_division=0
    )
    if set(gold) == set(gold + guesses):
        weighted = answers.token_report(with_o=True)[-1]
        assert (weighted["precision"], weighted["recall"], weighted["f1"]) == pytest.approx(
            expected[:3]
        )


def test_a_file_of_nothing_but_o_has_figures():
    answers = TagAnswers(rows=[tagged(["O", "O"])], predicted=(("O", "O"),))
    assert answers.metrics()["entity_f1"] == 0.0
    assert answers.metrics()["token_accuracy"] == 1.0
    assert [row["label"] for row in answers.entity_report()] == ["micro", "macro", "weighted"]


def test_spans_of_characters_take_every_token_that_they_touch():
    row = tagged(["B-X", "I-X", "O"], words=["New", "York", "rose"])
    answers = TagAnswers.from_spans([row], [[(1, 8, "X"), (50, 60, "X"), (9, 13, "Y")]])
    assert answers.predicted == (("B-X", "I-X", "B-Y"),)


def test_rankings_by_hand():
    found = RankingAnswers(ranks=np.array([1, 3, 11, 0]), cutoffs=(3, 10)).metrics()
    assert found["r@1"] == 0.25
    assert found["hr@3"] == found["hr@10"] == 0.5
    assert found["ndcg@10"] == pytest.approx((1 + 1 / log2(4)) / 4)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)


def test_ties_go_by_the_catalogue_and_hidden_items_take_no_place():
    scores = np.array([[0.5, 0.9, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert ranks_of(scores, np.array([2, 3])).tolist() == [3, 4]
    hidden = np.array([[False, True, False, False], [True, True, False, False]])
    assert ranks_of(scores, np.array([2, 3]), hidden).tolist() == [2, 2]


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_solution_in_them(tried, data):
    solved = data.draw(st.integers(0, tried))
    k = data.draw(st.integers(1, tried))
    choices = list(combinations([True] * solved + [False] * (tried - solved), k))
    assert pass_at_k(tried, solved, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_of_too_few_tries_is_refused_or_left_out():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)
    found = SampleAnswers(tried=np.array([5, 5]), solved=np.array([5, 0]), ks=(1, 5, 10)).metrics()
    assert found == {"pass@1": 0.5, "pass@5": 0.5}
