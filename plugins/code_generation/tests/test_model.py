"""`code.generate` on the default model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gptflow
from gptflow.errors import ModelNotFound, SandboxUnavailable
from gptflow_code_generation.sandbox import probe

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def flow() -> Iterator[gptflow.Client]:
    try:
        client = gptflow.Client("memory://")
    except ModelNotFound as error:
        pytest.skip(str(error))
    with client:
        yield client


def test_it_completes_a_function(flow: gptflow.Client) -> None:
    answer = flow.run("code.generate", "def add(a, b):")
    assert answer["best"].startswith("def add(a, b):\n    ")
    assert "return a + b" in answer["best"]
    namespace: dict[str, object] = {}
    exec(answer["best"], namespace)


def test_it_writes_what_was_asked_for_in_words_and_passes_its_tests(flow: gptflow.Client) -> None:
    try:
        probe.choose_backend()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    given = {
        "prompt": "Return the sum of all even numbers in a list.",
        "tests": ["assert sum_even([1, 2, 3, 4]) == 6", "assert sum_even([]) == 0"],
        "n": 4,
    }
    answer = flow.run("code.generate", given, seed=0)
    assert answer["pass_rate"] > 0
    assert answer["candidates"][0]["tests"]["status"] == "passed"
