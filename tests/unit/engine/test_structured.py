"""JSON at the limit of its tokens: complete or cut, and never the one for the other."""

from __future__ import annotations

import pytest

from gptflow.engine.sequence import Sampling, Structured
from gptflow.errors import EngineError
from gptflow.heads import Json
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

FORCED = {"const": {"only": "this", "and": ["nothing", "else"]}}
DRAWN = {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}, "b": {"type": "boolean"}},
         "required": ["a", "b"], "additionalProperties": False}  # fmt: skip


class Grammar:
    """Admits tokens 0, 1, 2, ... up to `size`; from `forced_from` on it forces the rest."""

    def __init__(self, size, forced_from):
        self.size, self.forced_from, self.at = size, forced_from, 0

    @property
    def complete(self):
        return self.at == self.size

    def advance(self, tokens):
        self.at += len(tokens)

    def forced(self):
        if self.at < self.forced_from or self.complete:
            return []
        tokens = list(range(self.at, self.size))
        self.advance(tokens)
        return tokens


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("forced_from", [0, 1, 3, 99])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_value_is_complete_if_all_of_its_tokens_fit(size, forced_from, more):
    limit = size + more
    if limit == 0:
        pytest.skip("a request asks for one token at least")
    sequence = Structured([7, 8], sampling=Sampling(), limit=limit, end_ids=frozenset({999}))
    sequence.constrain(Grammar(size, forced_from))
    while not sequence.ended:
        sequence.accept(len(sequence.output), -0.5)
    assert sequence.finish == ("length" if more < 0 else "stop")
    assert sequence.output == list(range(min(size, limit)))


@pytest.mark.parametrize("schema", [FORCED, DRAWN])
def test_json_at_its_limit(make_engine, schema):
    engine = make_engine()

    def ask(limit):
        prompt = RenderedPrompt.plain("The dog")
        return engine.submit(Request(prompt=prompt, head=Json(schema=schema, max_tokens=limit)))

    whole = ask(100).result(30)
    needed = whole.usage.tokens_out
    for limit in (needed, needed + 1):
        assert ask(limit).result(30).value == whole.value
    for limit in (1, needed - 1):
        error = ask(limit).exception(30)
        assert isinstance(error, EngineError)
        assert error.code == "GF700"
        assert f"not complete after {limit} tokens" in error.message
        assert "max_tokens" in error.hint


def test_what_forces_itself_is_one_step_of_many_rows(make_engine):
    engine = make_engine()
    prompt = RenderedPrompt.plain("The dog")
    engine.submit(Request(prompt=prompt, head=Json(schema=FORCED))).result(30)
    assert engine.stats()["steps"] == 0  # nothing is left to draw, so nothing is computed

    schema = {"type": "object", "required": ["name", "a long name of a field"],
              "properties": {"name": {"type": "boolean"},
                             "a long name of a field": {"type": "boolean"}},
              "additionalProperties": False}  # fmt: skip
    forwards = []
    forward = engine._runner.forward

    def counting(chunks):
        forwards.append(sum(map(len, chunks)))
        return forward(chunks)

    engine._runner.forward = counting
    answer = engine.submit(Request(prompt=prompt, head=Json(schema=schema))).result(30)
    out = answer.usage.tokens_out
    assert sum(forwards) < answer.usage.tokens_in + out  # nobody needs the last token's row
    assert forwards[0] > answer.usage.tokens_in  # the first name comes with the prompt
    assert max(forwards[1:]) > 8  # the second one, quotes and all
    assert len(forwards) <= 4


def test_an_answer_that_cannot_be_made_says_nothing_of_what_it_would_have_been(
    make_engine, monkeypatch
):
    engine = make_engine()

    def broken(sequence):
        raise ValueError("the user's own words")

    monkeypatch.setattr(engine._preparer, "_text", broken)
    error = engine.submit(Request(prompt=(5, 6), head=Json(schema={"const": 1}))).exception(30)
    assert isinstance(error, EngineError)
    assert "ValueError" in str(error)
    assert "own words" not in str(error)
