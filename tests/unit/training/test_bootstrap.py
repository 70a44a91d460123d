"""Bootstrap and calibration: intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import EmptyData
from gptflow.training.data.rows import LabelledText, Origin
from gptflow.training.evaluation.bootstrap import compare, intervals
from gptflow.training.evaluation.calibration import (
    expected_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    rescale,
)
from gptflow.training.evaluation.scope import choose_threshold, energy, neighbourhood
from gptflow.training.report import LabelAnswers, RankingAnswers

ROWS = [
    LabelledText(origin=Origin("t", n), text="x", labels={"label": "ab"[n % 2]}) for n in range(200)
]


def answers(wrong):
    """Answers that are wrong in the rows of these places."""
    predicted = tuple("ba"[n % 2] if n in wrong else "ab"[n % 2] for n in range(200))
    return LabelAnswers(rows=ROWS, labels=("a", "b"), predicted=predicted, primary="accuracy")


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    held = 0
    for seed in range(60):
        ranks = np.where(generator.random(150) < 0.7, 1, 2)
        found = intervals(RankingAnswers(ranks=ranks), resamples=200, seed=seed)["r@1"]
        held += found.low <= 0.7 <= found.high
    assert held >= 52  # of 57 expected; fewer than 52 in one run of a hundred


def test_intervals_are_the_same_for_the_same_seed_and_narrow_with_rows():
    one, again = (intervals(answers(range(40)), resamples=200, seed=3) for _ in range(2))
    assert one == again
    assert one["accuracy"].low < one["accuracy"].value == 0.8 < one["accuracy"].high


def test_an_interval_is_as_wide_as_theory_says():
    found = intervals(answers(range(40)), resamples=4000)["accuracy"]
    half = 1.96 * (0.8 * 0.2 / 200) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_a_pair_tells_apart_what_two_intervals_do_not():
    better, worse = answers(range(40)), answers(range(46))
    alone = [intervals(each)["accuracy"] for each in (better, worse)]
    assert alone[0].low < alone[1].high  # the intervals overlap
    pair = compare(better, worse)
    assert pair.better
    assert not pair.worse
    assert pair.difference.value == pytest.approx(0.03)
    assert pair.p < 0.025
    assert compare(worse, better).worse


def test_equal_models_are_neither_better_nor_worse():
    pair = compare(answers(range(40)), answers(range(40)))
    assert (pair.better, pair.worse, pair.p) == (False, False, 1.0)


def test_models_that_answer_other_rows_are_not_compared():
    with pytest.raises(ValueError, match="answers 2 rows, not 200"):
        compare(answers(()), RankingAnswers(ranks=np.array([1, 1])), "r@1")


def sure(temperature, count=4000):
    """Probabilities that are too sure by a factor of `temperature` in the logits."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(count, 4)) * 1.5
    true = rescale(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1.0)
    gold = np.array([generator.choice(4, p=row) for row in true])
    return rescale(true, 1 / temperature), gold


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_what_made_the_model_too_sure(temperature):
    probs, gold = sure(temperature)
    found = fit_temperature(probs, gold)
    assert found == pytest.approx(temperature, rel=0.1)
    scaled = rescale(probs, found)
    assert expected_error(reliability(scaled, gold)) < 0.02
    assert (scaled.argmax(axis=1) == probs.argmax(axis=1)).all()
    for other in (found * 0.9, found * 1.1):
        assert negative_log_likelihood(scaled, gold) < negative_log_likelihood(
            rescale(probs, other), gold
        )


def test_the_calibration_error_by_hand():
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35], [0.65, 0.35]])
    bins = reliability(probs, np.array([0, 1, 0, 0]), bins=10)
    # Half are 0.9 sure and half of those right; half are 0.65 sure and all of those right.
    assert expected_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.35)
    assert sum(each.count for each in bins) == 4


def test_being_always_and_rightly_sure_is_no_error():
    probs = np.eye(3)
    assert expected_error(reliability(probs, np.arange(3))) == 0.0
    assert np.isfinite(fit_temperature(probs, np.array([0, 1, 1])))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.floats(0.5, 1))
def test_a_threshold_keeps_at_least_what_was_asked_for(scores, keep):
    scores = np.array(scores)
    threshold = choose_threshold(scores, keep)
    assert (scores >= threshold).mean() >= keep - 1e-9
    higher = scores[scores > threshold]
    if len(higher):
        assert (scores >= higher.min()).mean() < keep or len(higher) == len(scores)


def test_a_threshold_of_nothing_is_refused():
    with pytest.raises(EmptyData):
        choose_threshold(np.array([]))


def test_energy_is_larger_for_a_sure_row():
    scores = energy(np.array([[9.0, 0.0], [1.0, 1.0]]))
    assert scores[0] > scores[1] == pytest.approx(1 + np.log(2))


def test_a_neighbourhood_is_the_mean_cosine_with_the_nearest():
    known = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    found = neighbourhood(np.array([[5.0, 0.0], [1.0, 1.0]]), known, k=2)
    assert found == pytest.approx([1.0, 0.5**0.5])
    assert neighbourhood(known, known, k=9) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
