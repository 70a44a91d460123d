"""Which candidate is best."""

from __future__ import annotations

from gptflow_code_generation.imports import Undefined
from gptflow_code_generation.ranking import Candidate, ranked
from gptflow_code_generation.sandbox.trial import Report


def test_each_criterion_decides_among_those_that_tie_on_the_ones_before() -> None:
    one = Report(passed=1, failed=1, status="failed")
    both = Report(passed=2, failed=0, status="passed")
    undefined = (Undefined("x", 1),)
    best_first = [
        Candidate(code="long code", parses=True, report=both, lint=undefined, mean_logprob=-9),
        Candidate(code="f", parses=True, report=one, mean_logprob=-0.5),
        Candidate(code="ff", parses=True, report=one, mean_logprob=-0.5, sample=3),
        Candidate(code="gg", parses=True, report=one, mean_logprob=-0.5, sample=4),
        Candidate(code="f", parses=True, report=one, mean_logprob=-0.6),
        Candidate(code="f", parses=True, report=one, lint=undefined, mean_logprob=-0.1),
        Candidate(code="f", parses=False, report=one, mean_logprob=-0.1),
        Candidate(code="f", parses=True, mean_logprob=-0.1),
    ]
    assert ranked(best_first[::-1]) == best_first
    assert ranked(best_first) == best_first
