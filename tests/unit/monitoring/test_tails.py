"""Tail probabilities, against sums done the long way in exact fractions."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest

from gptflow.monitoring.tails import (
    beta_binomial_tail,
    negative_binomial_interval,
    negative_binomial_tail,
)


def binomial_tail(count: int, total: int, share: Fraction) -> float:
    terms = (
        math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count, total + 1)
    )
    return float(sum(terms))


def test_poisson_tail_is_known() -> None:
    assert negative_binomial_tail(1, 2.0, 2.0) == pytest.approx(1 - math.exp(-2))
    assert negative_binomial_tail(3, 2.0, 2.0) == pytest.approx(1 - 5 * math.exp(-2))


def test_far_tail_keeps_its_digits() -> None:
    # The sum of 5**k / k! from 100 on is 1.0526... times its first term.
    first = math.exp(100 * math.log(5) - 5 - math.lgamma(101))
    rest = sum(math.prod(5 / (100 + i) for i in range(1, n + 1)) for n in range(1, 60))
    assert negative_binomial_tail(100, 5.0, 5.0) == pytest.approx(first * (1 + rest), rel=1e-12)
    assert 0 < negative_binomial_tail(100, 5.0, 5.0) < 1e-80


def test_negative_binomial_of_size_one_is_geometric() -> None:
    # mean 4 and variance 20 are those of a geometric with success 1/5: P(Y >= y) = 0.8**y.
    for count in (1, 3, 10, 60):
        assert negative_binomial_tail(count, 4.0, 20.0) == pytest.approx(0.8**count, rel=1e-10)


@pytest.mark.parametrize("count", [1, 4, 9, 15, 20])
def test_beta_binomial_without_correlation_is_binomial(count: int) -> None:
    expected = binomial_tail(count, 20, Fraction(3, 10))
    assert beta_binomial_tail(count, 20, 0.3, 0.0) == pytest.approx(expected, rel=1e-10)


def test_beta_binomial_of_even_odds_and_third_correlation_is_uniform() -> None:
    # Beta(1, 1): share 1/2, correlation 1/3. Every count of 10 trials is as likely.
    for count in range(11):
        assert beta_binomial_tail(count, 10, 0.5, 1 / 3) == pytest.approx((11 - count) / 11)


def test_tails_fall_from_one_to_nothing() -> None:
    tails = [negative_binomial_tail(count, 12.0, 30.0) for count in range(200)]
    assert tails[0] == 1.0
    assert all(a >= b for a, b in pairwise(tails))
    assert beta_binomial_tail(11, 10, 0.5, 0.1) == 0.0


def test_interval_holds_what_it_promises() -> None:
    low, high = negative_binomial_interval(10.0, 25.0)
    assert low < 10 < high
    inside = negative_binomial_tail(low, 10.0, 25.0) - negative_binomial_tail(high + 1, 10.0, 25.0)
    assert 0.95 <= inside < 0.99
