"""Grammars: compiled once each, and nobody waits for another one's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptflow.engine.constraints import Grammars
from gptflow.errors import InvalidGrammar

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
