"""Grammars: compiled once each, and nobody waits for another one's."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from gptflow.engine.constraints import Grammars
from gptflow.errors import EngineError, InvalidGrammar

SLOW, FAST = {"enum": ["slow"]}, {"enum": ["fast"]}


@pytest.fixture
def grammars(tiny):
    return Grammars(tiny.vocabulary)


def test_a_schema_that_takes_long_holds_up_nobody_else(grammars, monkeypatch):
    compile_, begun, go = grammars._compile, threading.Event(), threading.Event()
    compiled = []

    def compiling(schema):
        compiled.append(schema)
        if "slow" in schema:
            begun.set()
            assert go.wait(30)
        return compile_(schema)

    monkeypatch.setattr(grammars, "_compile", compiling)
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(grammars.constraint, SLOW) for _ in range(3)]
        try:
            assert begun.wait(30)
            assert pool.submit(grammars.constraint, FAST).result(30)
            assert not any(future.done() for future in slow)
        finally:
            go.set()
        assert len({id(future.result(30)) for future in slow}) == 3
    assert len(compiled) == 2


def test_a_schema_that_failed_is_tried_again(grammars, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(grammars, "_compile", lambda schema: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            grammars.constraint(FAST)
    assert grammars.constraint(FAST)
    for _ in range(2):
        with pytest.raises(InvalidGrammar):
            grammars.constraint({"type": "nonsense"})


def test_whoever_waits_is_not_interrupted_with_the_one_who_compiles(grammars, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def interrupted(schema):
        begun.set()
        assert go.wait(30)
        raise KeyboardInterrupt

    waits = threading.Event()
    result = Future.result

    def waiting(future, timeout=None):
        waits.set()
        return result(future, timeout)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(grammars, "_compile", interrupted)
        patch.setattr("gptflow.engine.constraints.Future.result", waiting)
        first = pool.submit(grammars.constraint, SLOW)
        assert begun.wait(30)
        second = pool.submit(grammars.constraint, SLOW)
        assert waits.wait(30)
        go.set()
        assert isinstance(first.exception(30), KeyboardInterrupt)
        assert isinstance(second.exception(30), EngineError)
    assert grammars.constraint(SLOW)


@pytest.mark.parametrize("key", ["$ref", "items"])
def test_a_schema_that_nothing_fits_is_refused(grammars, key):
    schema = {"$ref": "#"}
    if key == "items":
        for _ in range(5000):
            schema = {"items": schema}
    with pytest.raises(InvalidGrammar):
        grammars.constraint(schema)


def test_a_panic_of_the_compiler_is_an_error(grammars, monkeypatch):
    class Panic(BaseException):
        pass

    def panicking(*args, **settings):
        raise Panic

    with monkeypatch.context() as patch:
        patch.setattr("llguidance.LLMatcher.grammar_from_json_schema", panicking)
        with pytest.raises(EngineError, match="Panic"):
            grammars.constraint(FAST)
    assert grammars.constraint(FAST)


def test_an_answer_that_goes_wrong_is_not_quoted(grammars, tiny):
    constraint = grammars.constraint({"type": "string"})
    tokens = tiny.vocabulary.encode_text('"my secret" and more')
    with pytest.raises(EngineError) as caught:
        constraint.advance(tokens)
    assert "InternalError" in str(caught.value)
    assert "secret" not in str(caught.value)
