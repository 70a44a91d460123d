"""1. Tasks: a task is a typed unit of work, from an input through a model to an output.

Read these files in their order: each test shows one thing, and runs as it stands.
"""

from typing import Literal

import pytest

from gptflow import Choose, Chosen, Input, Output, Prompt, Task, Text
from gptflow.errors import EmptyInput, InvalidInput
from gptflow.testing import run


class Post(Input):
    """What the task takes. `Text` is a string that must hold something."""

    text: Text
    lang: str = "en"


class Mood(Output):
    """What the task gives."""

    label: Literal["good", "bad"]


class ReadMood(Task[Post, Chosen, Mood]):
    """Whether a post is in a good or a bad mood."""

    name = "mood.read"
    prompt = Prompt("Post: {{ text }}\nMood:")
    head = Choose(labels=("good", "bad"))

    def postprocess(self, input: Post, raw: Chosen) -> Mood:
        return Mood(label=raw.label)


def test_a_task_turns_an_input_into_an_output():
    """`run` needs no model: `choose` is what a scripted engine answers."""
    assert run(ReadMood(), {"text": "What a day!"}, choose="good") == Mood(label="good")


def test_a_bare_string_is_the_inputs_text():
    assert run(ReadMood(), "What a day!", choose="good") == Mood(label="good")


def test_the_input_is_checked_before_the_model_is_asked():
    with pytest.raises(InvalidInput, match="no input field 'txt'"):
        run(ReadMood(), {"text": "What a day!", "txt": "?"})


def test_an_error_says_what_to_type_next():
    with pytest.raises(InvalidInput) as caught:
        run(ReadMood(), {"txt": "What a day!", "text": "?"})
    assert caught.value.hint == "Did you mean 'text'?"


def test_text_with_nothing_in_it_is_an_error_of_its_own():
    with pytest.raises(EmptyInput):
        run(ReadMood(), "   ")


def test_text_is_cleaned_of_what_no_reader_sees():
    post = ReadMood().parse("tidy\x00 \u202etext")
    assert post.text == "tidy text"


def test_a_task_describes_itself():
    task = ReadMood()
    assert task.summary == "Whether a post is in a good or a bad mood."
    assert task.input_type.model_json_schema()["required"] == ["text"]
    assert task.output_type.model_json_schema()["properties"]["label"]["enum"] == ["good", "bad"]
