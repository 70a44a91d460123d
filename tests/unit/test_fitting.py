"""Prompts that do not fit: shortened by their own rule, or refused with the counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow import fitting
from gptflow.errors import InputTooLong
from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.testing import ScriptedEngine

HEAD = Generate(max_tokens=20)


class CountingEngine(ScriptedEngine):
    """Counts how often, and over how many characters, it is asked for a length."""

    def __init__(self, **options):
        super().__init__(**options)
        self.counts = []

    def count_tokens(self, prompt):
        self.counts.append(len(prompt.text))
        return super().count_tokens(prompt)


def render(prompt, text, *, context=100, engine=None, head=HEAD, **more):
    engine = engine or ScriptedEngine(context=context)
    fitted = fitting.fit(engine, head, prompt, {"text": text, **more}, "test.say")
    return fitted.prompt, fitted.truncated


def test_a_prompt_that_fits_is_left_as_it_is():
    rendered, truncated = render(Prompt("Say {{ text }}.", truncate="text"), "hello")
    assert (rendered.text, truncated) == ("Say hello.", False)


@pytest.mark.parametrize(
    ("keep", "kept"), [("start", lambda t: t.startswith("a")), ("end", lambda t: t.endswith("z"))]
)
def test_the_variable_that_gives_way_loses_its_other_end(keep, kept):
    prompt = Prompt("Say: {{ text }}", truncate="text", keep=keep)
    rendered, truncated = render(prompt, "a" + "m" * 5000 + "z")
    assert truncated
    assert rendered.text.startswith("Say: ")
    assert kept(rendered.data[0])


@given(st.integers(1, 3000))
def test_as_much_is_kept_as_fits(length):
    """100 tokens of context less 20 for the answer are 80; a token is four characters."""
    rendered, truncated = render(Prompt("{{ text }}", truncate="text"), "x" * length)
    assert len(rendered.text) == min(length, 320)
    assert truncated == (length > 320)


def test_a_prompt_of_the_variable_alone_is_shortened_too():
    rendered, truncated = render(Prompt("{{ text }}", truncate="text"), "\n\n" + "x " * 4000)
    assert truncated
    assert rendered.text.strip()


def test_without_a_variable_that_may_give_way_the_prompt_is_refused_with_both_counts():
    with pytest.raises(InputTooLong, match=r"takes 250 tokens; 80 fit") as caught:
        render(Prompt("{{ text }}"), "x" * 1000)
    assert caught.value.hint == "Shorten the input."


def test_a_prompt_whose_other_parts_are_too_long_is_refused():
    with pytest.raises(InputTooLong, match=r"test\.say"):
        render(Prompt("{{ other }} {{ text }}", truncate="text"), "x", other="y" * 1000)


def test_a_variable_that_is_not_text_cannot_be_shortened():
    with pytest.raises(InputTooLong):
        render(Prompt("{{ text | join }}", truncate="text"), ["x" * 1000])


def test_a_plain_prompt_is_held_to_the_same_limit():
    engine = ScriptedEngine(context=100)
    fitting.require(engine, Embed(), RenderedPrompt.plain("x" * 400), "test.say")
    with pytest.raises(InputTooLong, match="takes 101 tokens; 100 fit"):
        fitting.require(engine, Embed(), RenderedPrompt.plain("x" * 401), "test.say")


@pytest.mark.parametrize(
    ("head", "room"),
    [
        (Generate(max_tokens=30), 70),
        (Generate(max_tokens=90), 50),  # half of the context at least is the prompt's
        (Json(schema={}, max_tokens=30), 70),
        (Choose(labels=("yes", "maybe")), 94),
        (Score(yes="Yes", no="No"), 96),
        (Embed(), 100),
    ],
)
def test_each_head_leaves_room_for_its_answer(head, room):
    assert fitting.room(ScriptedEngine(context=100), head) == room


def test_a_short_prompt_is_not_tokenised_to_know_that_it_fits():
    engine = CountingEngine(context=2048)
    render(Prompt("Say {{ text }}.", truncate="text"), "hello", engine=engine)
    assert engine.counts == []


@pytest.mark.parametrize("keep", ["start", "end"])
def test_a_megabyte_is_tokenised_once_and_its_parts_a_bounded_number_of_times(keep):
    engine = CountingEngine(context=2048)
    prompt = Prompt("Say {{ text }}.", truncate="text", keep=keep)
    _, truncated = render(prompt, "lorem ipsum " * 90_000, engine=engine)
    assert truncated
    assert len(engine.counts) <= 24
    assert sum(count > 100_000 for count in engine.counts) <= 2


def test_the_baseline_is_made_of_what_was_kept():
    variables = {"text": "x" * 5000, "other": "y"}
    prompt = Prompt("{{ other }} {{ text }}", truncate="text")
    fitted = fitting.fit(ScriptedEngine(context=100), HEAD, prompt, variables, "test.say")
    assert fitted.truncated
    assert fitted.prompt.text == prompt.render(fitted.variables).text
    assert len(fitted.variables["text"]) < 5000
