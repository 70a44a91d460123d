"""Tail probabilities of counts, exact to floating point, from `math.lgamma` alone.

A tail is summed from its first term outwards, so that one of 1e-30 keeps its digits; `1 - cdf`
would give 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_NEGLIGIBLE = 1e-17


def negative_binomial_tail(count: int, mean: float, variance: float) -> float:
    """P(Y >= count) for a negative binomial Y; Poisson where the variance is not above the mean."""
    if count <= 0:
        return 1.0
    log_pmf, ratio = _negative_binomial(mean, variance)
    if count > mean:
        return _sum(log_pmf(count), count, ratio)
    return max(0.0, 1.0 - _sum(log_pmf(0), 0, ratio, stop=count))


def negative_binomial_interval(
    mean: float, variance: float, coverage: float = 0.95
) -> tuple[int, int]:
    """The central interval that holds at least `coverage` of a negative binomial."""
    log_pmf, ratio = _negative_binomial(mean, variance)
    term, below, count = math.exp(log_pmf(0)), 0.0, 0
    low: int | None = None
    edge = (1.0 - coverage) / 2
    limit = mean + 40.0 * math.sqrt(variance) + 40.0
    while below + term < 1.0 - edge and count < limit:
        below += term
        if low is None and below > edge:
            low = count
        term *= ratio(count)
        count += 1
    return (count if low is None else low), count


def beta_binomial_tail(count: int, total: int, share: float, correlation: float) -> float:
    """P(Y >= count) of `total` trials that succeed with chance `share`.

    Args:
        correlation: between two trials of the same bucket, 0 for a plain binomial.
    """
    if count <= 0:
        return 1.0
    if count > total:
        return 0.0
    log_pmf, ratio = _beta_binomial(total, share, correlation)
    if count > total * share:
        return _sum(log_pmf(count), count, ratio, stop=total + 1)
    return max(0.0, 1.0 - _sum(log_pmf(0), 0, ratio, stop=count))


Pmf = tuple[Callable[[int], float], Callable[[int], float]]
"""The log of P(Y = k), and P(Y = k + 1) / P(Y = k)."""


def _negative_binomial(mean: float, variance: float) -> Pmf:
    if variance <= mean * (1 + 1e-9):
        log_mean = math.log(mean)
        return (
            lambda k: k * log_mean - mean - math.lgamma(k + 1),
            lambda k: mean / (k + 1),
        )
    size = mean * mean / (variance - mean)
    failure = 1.0 - mean / variance
    constant = size * math.log(mean / variance) - math.lgamma(size)
    return (
        lambda k: constant + math.lgamma(k + size) - math.lgamma(k + 1) + k * math.log(failure),
        lambda k: (k + size) / (k + 1) * failure,
    )


def _beta_binomial(total: int, share: float, correlation: float) -> Pmf:
    if correlation < 1e-9:
        log_odds = math.log(share) - math.log1p(-share)
        odds = math.exp(log_odds)
        return (
            lambda k: _log_choose(total, k) + k * log_odds + total * math.log1p(-share),
            lambda k: (total - k) / (k + 1) * odds,
        )
    alpha = share * (1 - correlation) / correlation
    beta = (1 - share) * (1 - correlation) / correlation
    constant = _log_beta(alpha, beta)
    return (
        lambda k: _log_choose(total, k) + _log_beta(k + alpha, total - k + beta) - constant,
        lambda k: (total - k) / (k + 1) * (k + alpha) / (total - k - 1 + beta),
    )


def _sum(log_first: float, first: int, ratio: Callable[[int], float], stop: int = 1 << 62) -> float:
    """The sum of a pmf from `first` up to `stop`, cut where the rest is negligible."""
    term = total = 1.0
    for k in range(first, stop - 1):
        step = ratio(k)
        term *= step
        total += term
        if step < 1.0 and term < total * _NEGLIGIBLE * (1.0 - step):
            break
    log_total = log_first + math.log(total)
    return min(1.0, math.exp(log_total))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
