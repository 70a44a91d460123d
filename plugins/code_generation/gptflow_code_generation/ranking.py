"""Candidates, and which of them is best."""

from __future__ import annotations

import dataclasses

from gptflow_code_generation.imports import Undefined
from gptflow_code_generation.sandbox.trial import Report


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One sample after cleaning.

    Attributes:
        parses: whether `code` is a program; if not, it is what the model wrote.
        report: None when it was given no tests.
        mean_logprob: of the sample's tokens, in nats.
        sample: its number among the samples, from 0.
    """

    code: str
    parses: bool
    lint: tuple[Undefined, ...] = ()
    report: Report | None = None
    mean_logprob: float = 0.0
    sample: int = 0


def ranked(candidates: list[Candidate]) -> list[Candidate]:
    """Best first: more tests passed, parses, no undefined names, likelier, shorter, earlier."""
    return sorted(
        candidates,
        key=lambda candidate: (
            -(candidate.report.passed if candidate.report else 0),
            not candidate.parses,
            bool(candidate.lint),
            -candidate.mean_logprob,
            len(candidate.code),
            candidate.sample,
        ),
    )
