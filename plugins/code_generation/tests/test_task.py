"""`code.generate` from input to output, on a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gptflow.context import Job
from gptflow.errors import EmptyInput, InvalidInput, SandboxUnavailable
from gptflow.executor import Executor
from gptflow.heads import Continuation, Generate, Generated, Raw
from gptflow.request import Request
from gptflow.testing import ScriptedEngine, TaskContract, registry_of, run, run_result
from gptflow_code_generation import task as task_module
from gptflow_code_generation.sandbox import probe
from gptflow_code_generation.task import GenerateCode

ADD = "\n    return a + b\n"
ADD_TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


class Samples(ScriptedEngine):
    """An engine that draws these texts, with these log-probabilities."""

    def __init__(self, *texts: str, logprobs: tuple[float, ...] = ()) -> None:
        super().__init__()
        logprobs = logprobs or (-1.0,) * len(texts)
        self.continuations = tuple(
            Continuation(text=text, mean_logprob=logprob)
            for text, logprob in zip(texts, logprobs, strict=True)
        )

    def _answer(self, request: Request) -> Raw:
        return Generated(continuations=self.continuations)


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise SandboxUnavailable("No sandbox contains code here.")

    monkeypatch.setattr(task_module, "choose_backend", refuse)


@pytest.fixture
def sandbox() -> Iterator[str]:
    try:
        yield probe.choose_backend()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


class TestGenerateCode(TaskContract):
    task = GenerateCode()


def test_a_signature_is_completed_as_plain_text() -> None:
    engine = ScriptedEngine(generate=ADD)
    answer = run(GenerateCode(), "def add(a, b):", engine=engine)
    assert answer.best == "def add(a, b):\n    return a + b\n"
    (request,) = engine.requests
    assert not request.prompt.is_chat
    assert engine.prompts[0].endswith("\ndef add(a, b):")
    assert "\ndef " in request.head.stop


def test_a_request_in_words_gets_an_open_code_fence() -> None:
    engine = ScriptedEngine(generate="def add(a, b):" + ADD)
    answer = run(GenerateCode(), "Add two numbers.", engine=engine)
    assert answer.best == "def add(a, b):\n    return a + b\n"
    (request,) = engine.requests
    assert request.prompt.messages[-1].role == "assistant"
    assert request.prompt.messages[-1].text == "```python\n"
    assert "\ndef " not in request.head.stop, "it would cut off a function after an import"


@pytest.mark.parametrize(
    ("extra", "opening"),
    [
        ({"tests": ADD_TESTS}, "def add("),
        ({"signature": "def add(a: int, b: int) -> int"}, "def add(a: int, b: int) -> int:"),
        ({"tests": ["assert Stack().pop() is None"]}, "class Stack"),
        ({"tests": ["assert sum([1]) == 1"]}, ""),
    ],
)
def test_the_answer_is_started_with_what_is_known_of_it(
    extra: dict[str, Any], opening: str, no_sandbox: None
) -> None:
    engine = ScriptedEngine()
    run(GenerateCode(), {"prompt": "Add two numbers.", **extra}, engine=engine)
    assert engine.requests[0].prompt.messages[-1].text == f"```python\n{opening}"


def test_one_request_draws_all_samples() -> None:
    engine = ScriptedEngine(generate=ADD)
    answer = run(GenerateCode(), {"prompt": "def add(a, b):", "n": 5}, engine=engine)
    (request,) = engine.requests
    assert isinstance(request.head, Generate)
    assert (request.head.n, request.head.temperature, request.head.top_p) == (5, 0.7, 0.95)
    assert len(answer.candidates) == 5


def test_one_sample_is_greedy() -> None:
    engine = ScriptedEngine(generate=ADD)
    run(GenerateCode(), "def add(a, b):", engine=engine)
    assert engine.requests[0].head.temperature == 0


def test_candidates_that_pass_come_first_and_say_so(sandbox: str) -> None:
    engine = Samples("\n    return a - b", "\n    return (", ADD, logprobs=(-0.1, -0.2, -2.0))
    given = {"prompt": "def add(a, b):", "tests": ADD_TESTS, "n": 3}
    answer = run(GenerateCode(), given, engine=engine)
    assert answer.best == "def add(a, b):\n    return a + b\n"
    assert [c.tests.status for c in answer.candidates] == ["passed", "failed", "syntax"]
    assert [c.sample for c in answer.candidates] == [2, 0, 1]
    assert answer.pass_rate == pytest.approx(1 / 3)
    assert answer.sandbox.backend == sandbox
    assert answer.sandbox.wall_ms > 0
    assert answer.candidates[1].tests.detail.startswith("assert add(1, 2) == 3: AssertionError")


def test_equal_code_is_run_once(sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[str] = []
    real = task_module.run_trial

    def counted(backend: str, code: str, *args: Any, **kwargs: Any) -> Any:
        trials.append(code)
        return real(backend, code, *args, **kwargs)

    monkeypatch.setattr(task_module, "run_trial", counted)
    answer = run(
        GenerateCode(),
        {"prompt": "def add(a, b):", "tests": ADD_TESTS, "n": 3},
        engine=Samples(ADD, ADD, "\n    return b + a"),
    )
    assert len(trials) == 2
    assert answer.pass_rate == 1


def test_tests_may_use_the_standard_library_without_importing_it(sandbox: str) -> None:
    given = {
        "prompt": "def area(r):",
        "tests": ["assert math.isclose(area(1), math.pi)", "assert Counter([area(0)])[0] == 1"],
    }
    answer = run(GenerateCode(), given, generate="\n    return math.pi * r**2\n")
    assert answer.best.startswith("import math\n")
    assert answer.pass_rate == 1


def test_nothing_that_passes_is_an_abstention(sandbox: str) -> None:
    given = {"prompt": "def add(a, b):", "tests": ADD_TESTS}
    result = run_result(GenerateCode(), given, engine=ScriptedEngine(generate="\n    return 0"))
    assert result.abstained == "no candidate passes the tests"
    assert result.output["pass_rate"] == 0


def test_without_a_sandbox_code_is_written_but_never_run(
    no_sandbox: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "run_trial", pytest.fail)
    given = {"prompt": "def add(a, b):", "tests": ADD_TESTS}
    result = run_result(GenerateCode(), given, engine=ScriptedEngine(generate=ADD))
    assert result.output["best"] == "def add(a, b):\n    return a + b\n"
    assert result.output["candidates"][0]["tests"]["status"] == "blocked"
    assert result.output["sandbox"] is None
    assert result.output["pass_rate"] is None
    assert "No sandbox" in result.warnings[0]


def test_text_that_is_no_code_is_returned_as_such() -> None:
    result = run_result(
        GenerateCode(), "Add two numbers.", engine=ScriptedEngine(generate="I am sorry, no.")
    )
    assert result.output["best"] is None
    assert result.output["candidates"][0]["code"] == "I am sorry, no."
    assert result.abstained == "no candidate parses"


def test_undefined_names_are_listed_and_cost_rank() -> None:
    engine = Samples("\n    return c\n", "\n    return a\n", logprobs=(-0.1, -0.9))
    answer = run(GenerateCode(), {"prompt": "def f(a):", "n": 2}, engine=engine)
    assert answer.best == "def f(a):\n    return a\n"
    assert [(it.name, it.line) for it in answer.candidates[1].lint] == [("c", 2)]


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "x", "n": 0},
        {"prompt": "x", "n": 21},
        {"prompt": "x", "n": 2, "temperature": 0},
        {"prompt": "x", "tests": ["assert ("]},
        {"prompt": "x", "signature": "add two numbers"},
        {"prompt": "x", "timeout_s": 1e9},
        {"prompt": "x", "temperature": float("nan")},
    ],
)
def test_a_bad_field_is_refused_without_asking_the_model(given: dict[str, Any]) -> None:
    engine = ScriptedEngine()
    result = run_result(GenerateCode(), given, engine=engine)
    assert result.error is not None
    assert result.error.code == InvalidInput.code
    assert not engine.requests


def test_blank_tests_are_refused() -> None:
    result = run_result(GenerateCode(), {"prompt": "x", "tests": [" "]})
    assert result.error is not None
    assert result.error.code == EmptyInput.code


def test_the_event_loop_runs_on_while_tests_run(sandbox: str) -> None:
    executor = Executor(
        ScriptedEngine(generate="\n    import time\n    time.sleep(0.5)\n    return a + b"),
        registry_of(GenerateCode()),
    )
    given = {"prompt": "def add(a, b):", "tests": ["assert add(1, 2) == 3"]}

    async def ticks_meanwhile() -> int:
        executor.setup()
        job = asyncio.ensure_future(
            executor.run(Job(id="job_1", task="code.generate", input=given))
        )
        ticks = 0
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert job.result().output["pass_rate"] == 1
        return ticks

    assert asyncio.run(ticks_meanwhile()) >= 20
