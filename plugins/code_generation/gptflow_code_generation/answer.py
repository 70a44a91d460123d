"""What the caller gets."""

from __future__ import annotations

from gptflow.task import Output
from gptflow_code_generation.ranking import Candidate
from gptflow_code_generation.sandbox.trial import Status


class UndefinedName(Output):
    """A name that the code uses and nothing defines."""

    name: str
    line: int


class TestResult(Output):
    """What came of the tests; see `gptflow_code_generation.sandbox.trial.Report`."""

    __test__ = False  # pytest takes it for a test class

    passed: int
    failed: int
    status: Status
    detail: str


class CandidateAnswer(Output):
    """One sample. `code` is what the model wrote where that does not parse."""

    code: str
    parses: bool
    lint: list[UndefinedName]
    tests: TestResult | None
    mean_logprob: float
    sample: int


class SandboxUse(Output):
    """Where the tests ran, within which limits, and how long that took in all."""

    backend: str
    limits: dict[str, int | float]
    wall_ms: float


class CodeAnswer(Output):
    """Candidates, best first.

    Attributes:
        best: the first candidate's code; None where it does not parse.
        pass_rate: share of the candidates that pass every test; None if none was run.
        sandbox: None if no test was run.
    """

    best: str | None
    candidates: list[CandidateAnswer]
    pass_rate: float | None
    sandbox: SandboxUse | None
    warnings: list[str]


def candidate_answer(candidate: Candidate) -> CandidateAnswer:
    """A candidate for the caller."""
    report = candidate.report
    return CandidateAnswer(
        code=candidate.code,
        parses=candidate.parses,
        lint=[UndefinedName(name=it.name, line=it.line) for it in candidate.lint],
        tests=report
        and TestResult(
            passed=report.passed, failed=report.failed, status=report.status, detail=report.detail
        ),
        mean_logprob=round(candidate.mean_logprob, 6),
        sample=candidate.sample,
    )
