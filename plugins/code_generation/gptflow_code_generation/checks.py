"""Checks of answers, for `gptflow data sample code.generate ... --check MODULE:FUNCTION`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptflow_code_generation import source
from gptflow_code_generation.imports import imports_for
from gptflow_code_generation.request import CodeRequest
from gptflow_code_generation.sandbox.limits import Limits
from gptflow_code_generation.sandbox.probe import choose_backend
from gptflow_code_generation.sandbox.trial import run_trial


def tests_passed(input: Mapping[str, Any], answer: str) -> float:
    """The share of the input's tests that a sample passes in the sandbox; 0 if it does not parse.

    Args:
        input: of `code.generate`, with `tests`.
        answer: what the model wrote after the beginning that the task gives it.

    Raises:
        ValueError: the input has no tests.
        SandboxUnavailable: no sandbox holds here, and nothing was run.
    """
    request = CodeRequest.model_validate(dict(input))
    if not request.tests:
        raise ValueError("the input has no tests")
    code = source.clean(request.opening, answer)
    if not code:
        return 0.0
    report = run_trial(
        choose_backend(),
        code,
        request.tests,
        imports=imports_for("\n".join(request.tests)),
        limits=Limits.for_timeout(request.timeout_s),
    )
    return report.passed / len(request.tests)
