"""The check by tests, with which samples of `code.generate` are told apart."""

from __future__ import annotations

from typing import Any

import pytest

from gptflow.errors import SandboxUnavailable
from gptflow_code_generation.checks import tests_passed as share_passed
from gptflow_code_generation.sandbox import probe

ADD: dict[str, Any] = {
    "prompt": "Write a function that adds two numbers.",
    "tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(0, 5) == 6"],
}


@pytest.fixture(autouse=True)
def sandbox() -> None:
    try:
        probe.choose_backend()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("a, b):\n    return a + b\n", 2 / 3),
        ("a, b):\n    return a * b + 6\n", 1 / 3),
        ("a, b):\n    raise KeyError\n", 0.0),
        ("a, b) return", 0.0),
    ],
)
def test_the_share_of_tests_that_pass(answer: str, share: float) -> None:
    assert share_passed(ADD, answer) == pytest.approx(share)


def test_without_tests_there_is_nothing_to_check() -> None:
    with pytest.raises(ValueError, match="no tests"):
        share_passed({"prompt": "Write a function that adds two numbers."}, "a, b): pass")
