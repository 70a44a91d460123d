"""Tasks: what a declaration must say, and what an input must be."""

import importlib.util
import sys
from typing import Generic, TypedDict, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import EmptyInput, InvalidInput, PluginError, PromptError
from gptflow.heads import Chosen, Generate, Generated, Score
from gptflow.prompt import Prompt
from gptflow.task import In, Input, Out, Output, RawT, Task, Text


class Post(Input):
    text: Text
    lang: str = "en"


class Mood(Output):
    label: str


class Echo(Task[Post, Generated, Mood]):
    """Say it again.

    And again.
    """

    name = "test.echo"
    prompt = Prompt("{{ text }} ({{ lang }})")
    head = Generate()


# Types


def test_a_task_knows_its_types_from_its_base():
    assert (Echo.input_type, Echo.output_type) == (Post, Mood)


def test_a_subclass_of_a_task_inherits_its_types():
    class Louder(Echo):
        pass

    assert (Louder.input_type, Louder.output_type) == (Post, Mood)


def test_a_base_in_between_may_leave_types_open_in_any_order():
    class Choosing(Task[In, Chosen, Out], Generic[Out, In]):
        pass

    class Half(Choosing[Mood, In]):
        pass

    class Whole(Half[Post]):
        pass

    assert (Whole.input_type, Whole.output_type) == (Post, Mood)
    assert not hasattr(Choosing, "input_type")
    assert not hasattr(Half, "input_type")


def test_a_base_in_between_may_have_types_of_its_own():
    Extra = TypeVar("Extra")

    class Base(Task[In, RawT, Out], Generic[Extra, In, RawT, Out]):
        pass

    class Whole(Base[int, Post, Chosen, Mood]):
        pass

    assert (Whole.input_type, Whole.output_type) == (Post, Mood)


def test_a_task_without_types_is_refused():
    class Untyped(Task):
        name = "test.untyped"

    with pytest.raises(PluginError, match="does not name its types") as caught:
        Untyped().check()
    assert f"{__file__}:" in caught.value.message


def test_types_are_inputs_and_outputs():
    class Wrong(Task[dict, Generated, Mood]):
        name = "test.wrong"

    with pytest.raises(PluginError, match=r"dict for its input.*gptflow\.Input"):
        Wrong().check()


# Names, summaries, places


@pytest.mark.parametrize("name", ["echo", "Echo.it", "a.", ".b", "a b.c", "a.b!", ""])
def test_a_name_is_a_domain_and_a_verb(name):
    class Misnamed(Echo):
        pass

    Misnamed.name = name
    with pytest.raises(PluginError, match=r"needs a `name` such as 'domain\.verb'"):
        Misnamed().check()


def test_the_summary_is_the_first_line_of_the_docstring():
    assert Echo().summary == "Say it again."


def test_a_task_knows_where_it_was_written():
    path, line = Echo().location.rsplit(":", 1)
    assert path == __file__
    with open(path, encoding="utf-8") as lines:
        assert lines.readlines()[int(line) - 1].startswith("class Echo")


def test_a_task_may_be_written_in_a_notebook(tmp_path, monkeypatch):
    """There a class has no file: prompts are looked for in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "say.j2").write_text("{{ text }}", encoding="utf-8")
    names = {"__name__": "notebook", "Echo": Echo, "Prompt": Prompt}
    exec("class Say(Echo):\n    prompt = Prompt.file('say.j2')\n", names)
    task = names["Say"]()
    task.check()
    assert task.directory == tmp_path
    assert task.location == "notebook.Say"


# Prompts


def test_every_prompt_of_the_class_is_read(tmp_path):
    class TwoSteps(Echo):
        second = Prompt.file("no_such_file.j2")

    assert set(TwoSteps().prompts()) == {"prompt", "second"}
    with pytest.raises(PromptError, match=r"no_such_file\.j2"):
        TwoSteps().check()


def test_a_variable_that_nothing_provides_is_found_when_the_task_is_registered():
    class Misspelt(Echo):
        prompt = Prompt("{{ txt }}")

    with pytest.raises(PromptError, match="'txt', which neither the input Post") as caught:
        Misspelt().check()
    assert caught.value.hint == "Did you mean 'text'?"


class Found(TypedDict):
    passage: str


def test_prepare_says_by_a_typed_dict_what_it_provides():
    class Reads(Echo):
        prompt = Prompt("{{ text }} {{ passage }}")

        def prepare(self, input) -> Found:
            return {"passage": "p"}

    class Misspelt(Reads):
        prompt = Prompt("{{ text }} {{ pasage }}")

    Reads().check()
    with pytest.raises(PromptError) as caught:
        Misspelt().check()
    assert caught.value.hint == "Did you mean 'passage'?"


def test_a_prepare_that_does_not_say_is_trusted():
    class Silent(Echo):
        prompt = Prompt("{{ whatever }}")

        def prepare(self, input):
            return {"whatever": 1}

    Silent().check()


def test_a_score_over_items_sees_each_as_item():
    class Rank(Echo):
        prompt = Prompt("{{ text }} {{ item }}")

    with pytest.raises(PromptError, match="'item'"):
        Rank().check()
    Rank.head = Score(each="things")
    Rank().check()


# Inputs


def test_a_bare_string_is_the_text():
    assert Echo().parse("hello") == Post(text="hello")


def test_without_a_text_field_a_bare_string_is_the_first_required_one():
    class Question(Input):
        style: str = "short"
        question: str

    assert Question.model_validate("Why?") == Question(question="Why?")


def test_a_bare_string_needs_a_field_to_go_to():
    class Options(Input):
        size: int = 1

    class Sized(Echo, Task[Options, Generated, Mood]):
        pass

    with pytest.raises(InvalidInput, match="does not say what it is"):
        Sized().parse("hello")


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00", "\u200b", "\u3000"])
def test_text_with_nothing_in_it_is_empty_input(text):
    with pytest.raises(EmptyInput, match="'text' is empty or blank"):
        Echo().parse({"text": text})


def test_an_input_that_is_an_input_already_is_taken_as_it_is():
    post = Post(text="x")
    assert Echo().parse(post) is post


def test_an_unknown_field_is_named_with_the_nearest_known_one():
    with pytest.raises(InvalidInput, match="no input field 'txet'") as caught:
        Echo().parse({"text": "x", "txet": "y"})
    assert caught.value.hint == "Did you mean 'text'?"


def test_an_unknown_field_like_no_other_points_to_the_schema():
    with pytest.raises(InvalidInput, match="'zzz'") as caught:
        Echo().parse({"text": "x", "zzz": "y"})
    assert "gptflow plugins show test.echo" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "'test.echo': 'text' is missing"),
        ({"text": 5}, "'test.echo': 'text' must be text, not a whole number"),
        ({"text": 5, "lang": []}, "not a whole number; 'lang' must be text, not a list"),
        (None, "the input must be an object, not null"),
        ([], "the input must be an object, not a list"),
        (5, "the input must be an object, not a whole number"),
    ],
)
def test_a_wrong_input_is_told_which_field_is_wrong_and_how(data, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        Echo().parse(data)


@given(st.text(min_size=1))
def test_a_wrong_inputs_value_is_never_in_the_message(secret):
    with pytest.raises(InvalidInput) as caught:
        Echo().parse({"text": "x", "lang": ["SECRET" + secret]})
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a\x00b", "ab"),
        ("lone \udc80", "lone \ufffd"),
        ("safe\u202egnp.exe", "safegnp.exe"),
        ("in\u200bvisible", "invisible"),
        ("👨‍👩‍👧", "👨‍👩‍👧"),
        ("one\r\ntwo", "one\ntwo"),
    ],
)
def test_input_text_is_cleaned(given, kept):
    assert Echo().parse({"text": given}).text == kept


def test_nested_input_is_cleaned():
    class Thread(Input):
        posts: tuple[Post, ...]

    assert Thread.model_validate({"posts": [{"text": "a\x00"}]}).posts[0].text == "a"


@given(st.text(st.characters(exclude_categories=())))
def test_any_string_is_either_an_input_that_can_be_sent_or_refused(text):
    try:
        parsed = Echo().parse(text)
    except EmptyInput:
        return
    assert parsed.model_dump_json().encode()


# Defaults


def test_a_task_needs_a_head_or_a_run_of_its_own():
    class Headless(Echo):
        head = None

    with pytest.raises(PluginError, match="neither a head nor a `run`"):
        Headless().head_for(Post(text="x"))


def test_a_task_needs_a_postprocess_or_a_run_of_its_own():
    with pytest.raises(PluginError, match="neither a `postprocess` nor a `run`"):
        Echo().postprocess(Post(text="x"), Generated(continuations=()))


def test_a_tasks_folder_is_that_of_its_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gptflow.text import Summarize\nclass Mine(Summarize):\n    pass\n", encoding="utf-8"
    )
    spec = importlib.util.spec_from_file_location("mine_for_a_test", tmp_path / "mine.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert module.Mine().directory == tmp_path
    finally:
        del sys.modules[spec.name]
