"""The tools that plugin authors test with are tested themselves."""

import json
import time
from enum import Enum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from gptflow.errors import EmptyInput, EngineStopped, InvalidInput, JobFailed, UnsupportedHead
from gptflow.heads import (
    Choose,
    Chosen,
    Embed,
    Generate,
    Head,
    Json,
    Score,
)
from gptflow.prompt import Prompt, RenderedPrompt
from gptflow.request import Request
from gptflow.task import Input, Output, Task, Text
from gptflow.testing import ScriptedEngine, TaskContract, examples, run, run_result


class Post(Input):
    text: Text


class Mood(Output):
    label: str


class Read(Task[Post, Chosen, Mood]):
    """Read a mood."""

    name = "test.read"
    prompt = Prompt("Text: {{ text }}\nMood:")
    head = Choose(labels=("good", "bad"))

    def postprocess(self, input, raw):
        return Mood(label=raw.label)


def ask(head, engine=None, text="prompt", **more):
    engine = engine or ScriptedEngine()
    return engine.submit(Request(prompt=RenderedPrompt.plain(text), head=head, **more)).result()


# The scripted engine


def test_the_script_says_what_the_engine_answers():
    engine = ScriptedEngine(generate="Hi.", json={"a": 1}, choose="bad", score=2.5)
    assert ask(Generate(), engine).text == "Hi."
    assert ask(Json(schema={}), engine).value == {"a": 1}
    assert ask(Choose(labels=("good", "bad")), engine).label == "bad"
    assert ask(Score(), engine).values == (2.5,)


def test_the_script_may_depend_on_the_prompt():
    engine = ScriptedEngine(
        generate=str.upper,
        json=lambda text: [text],
        choose=lambda text, labels: labels[len(text) % 2],
        score=len,
    )
    assert ask(Generate(), engine, "hey").text == "HEY"
    assert ask(Json(schema={}), engine, "hey").value == ["hey"]
    assert ask(Choose(labels=("even", "odd")), engine, "hey").label == "odd"
    assert ask(Score(), engine, "hey").values == (3,)


@pytest.mark.parametrize(
    "head", [Generate(n=2), Json(schema={"type": "null"}), Choose(labels=("a", "b", "c")), Score()]
)
def test_without_a_script_the_same_question_gets_the_same_answer(head):
    assert ask(head) == ask(head)
    assert ask(head).usage.tokens_in > 0


def test_probabilities_add_up_and_favour_the_label():
    chosen = ask(Choose(labels=("a", "b", "c")))
    assert sum(chosen.probs.values()) == pytest.approx(1)
    assert chosen.label == max(chosen.probs, key=chosen.probs.get)
    assert chosen.calibrated is False


def test_vectors_have_length_one_and_differ_by_text():
    one, two = ask(Embed(), text="one").vector, ask(Embed(), text="two").vector
    assert sum(x * x for x in one) == pytest.approx(1)
    assert one != two


def test_text_is_streamed_word_by_word():
    deltas = []
    ask(Generate(), ScriptedEngine(generate="One two three."), on_delta=deltas.append)
    assert "".join(delta.text for delta in deltas) == "One two three."
    assert len(deltas) == 3


def test_every_question_is_kept_in_order():
    engine = ScriptedEngine()
    ask(Score(), engine, "first")
    ask(Score(), engine, "second")
    assert engine.prompts == ["first", "second"]
    assert engine.stats()["requests"] == 2


def test_token_ids_may_be_a_prompt():
    request = Request(prompt=(1, 2, 3), head=Generate())
    engine = ScriptedEngine()
    engine.submit(request).result()
    assert engine.prompts == ["1 2 3"]


def test_a_head_that_the_engine_does_not_know_fails_through_the_future():
    with pytest.raises(UnsupportedHead, match="Head"):
        ask(Head())


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    flag: bool
    none: None


class Everything(BaseModel):
    inner: Inner
    choice: Literal["x", "y"]
    one: Literal["only"]
    colour: Colour
    maybe: int | None
    text: Annotated[str, Field(min_length=3)]
    floor: Annotated[int, Field(ge=7)]
    above: Annotated[int, Field(gt=7)]
    between: Annotated[float, Field(gt=0, lt=0.5)]
    ceiling: Annotated[int, Field(le=-3)]
    below: Annotated[int, Field(lt=-3)]
    several: Annotated[list[Inner], Field(min_length=2)]
    pair: tuple[int, str]
    table: dict[str, int]
    optional: str = "default"


def test_unscripted_json_fits_the_schema():
    value = ask(Json(schema=Everything)).value
    Everything.model_validate(json.loads(json.dumps(value)))
    assert "optional" not in value


@pytest.mark.parametrize(
    ("kind", "least"),
    [(int, 0), (str, ""), (bool, False), (list[int], []), (dict[str, int], {}), (None, None)],
)
def test_unscripted_json_is_the_least_value(kind, least):
    assert ask(Json(schema=TypeAdapter(kind).json_schema())).value == least


def test_all_of_is_answered_by_its_first_part():
    schema = {"allOf": [{"type": "integer", "minimum": 3}]}
    assert ask(Json(schema=schema)).value == 3


# Running a task


def test_run_gives_the_tasks_own_output_type():
    assert run(Read(), "fine", choose="good") == Mood(label="good")
    assert run(Read(), Post(text="fine"), choose="bad") == Mood(label="bad")


def test_run_raises_what_the_task_raised():
    with pytest.raises(EmptyInput):
        run(Read(), " ")


def test_run_result_keeps_the_error_in_the_result():
    assert run_result(Read(), {"wrong": 1}).error.code == InvalidInput.code


def test_the_examples_of_a_task_are_its_own(tmp_path, monkeypatch):
    rows = ['{"input": "a"}', "", '{"task": "test.read", "input": "b"}', '{"task": "x.y"}']
    (tmp_path / "examples.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(Read, "directory", tmp_path)
    assert [row["input"] for row in examples(Read())] == ["a", "b"]


def test_a_task_without_a_file_has_no_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(Read, "directory", tmp_path)
    assert examples(Read()) == []


# The contract


def checks(task_class, tmp_path, rows=('{"input": "a"}', '{"input": {"text": "b"}}'), **more):
    """The contract's tests that this task fails."""
    (tmp_path / "examples.jsonl").write_text("\n".join(rows), encoding="utf-8")

    class Here(task_class):
        __doc__ = task_class.__doc__
        directory = tmp_path

    contract = type("Contract", (TaskContract,), {"task": Here(), **more})()
    failed = set()
    for name in dir(TaskContract):
        if name.startswith("test_"):
            try:
                getattr(contract, name)()
            except Exception:
                failed.add(name)
    return failed


def test_a_good_task_keeps_the_contract(tmp_path):
    assert checks(Read, tmp_path) == set()


def test_a_task_without_a_docstring_breaks_it(tmp_path):
    class Silent(Read):
        __doc__ = ""

    assert checks(Silent, tmp_path) == {"test_says_what_it_does"}


def test_a_task_without_examples_breaks_it(tmp_path):
    assert "test_every_example_gives_an_output" in checks(Read, tmp_path, rows=())


def test_a_task_whose_example_fails_breaks_it(tmp_path):
    assert "test_every_example_gives_an_output" in checks(Read, tmp_path, rows=['{"input": ""}'])


def test_a_task_with_a_wrong_prompt_breaks_it(tmp_path):
    class Misspelt(Read):
        prompt = Prompt("{{ txt }}")

    assert "test_declaration_is_sound" in checks(Misspelt, tmp_path)


def test_a_task_that_remembers_breaks_it(tmp_path):
    class Counts(Read):
        seen = 0

        def postprocess(self, input, raw):
            type(self).seen += 1
            return Mood(label=str(self.seen))

    failed = checks(Counts, tmp_path)
    assert "test_the_same_input_gives_the_same_output" in failed
    assert "test_neighbours_do_not_matter" in failed


class Loose(Input):
    text: str


def test_a_task_that_asks_the_model_about_nothing_breaks_it_unless_it_says_so(tmp_path):
    class Accepts(Read, Task[Loose, Chosen, Mood]):
        pass

    name = "test_blank_text_is_refused_without_asking_the_model"
    assert checks(Accepts, tmp_path) == {name}
    assert checks(Accepts, tmp_path, blank_is_empty=False) == set()


class Lenient(Input, extra="ignore"):
    text: Text


def test_a_task_that_ignores_unknown_fields_breaks_it(tmp_path):
    class Ignores(Read, Task[Lenient, Chosen, Mood]):
        pass

    assert checks(Ignores, tmp_path) == {"test_unknown_fields_are_refused"}


def test_a_task_that_builds_its_prompt_from_user_text_breaks_it(tmp_path):
    class Pastes(Read):
        async def run(self, input, ctx):
            raw = await ctx.choose(Prompt("Text: " + input.text), labels=("good", "bad"))
            return Mood(label=raw.label)

    assert checks(Pastes, tmp_path) == {"test_user_text_never_becomes_a_turn"}


# The fixtures


def test_the_fixture_is_a_fresh_engine(scripted_engine):
    assert scripted_engine.requests == []
    assert scripted_engine.model.id == "scripted"


def test_an_engine_that_breaks_fails_the_job():
    def explode(text):
        raise RuntimeError(text)

    result = run_result(Read(), "secret", engine=ScriptedEngine(choose=lambda *_: explode("x")))
    assert result.error.code == JobFailed.code
    assert "secret" not in result.error.message


def test_the_engine_is_healthy_until_it_is_closed():
    engine = ScriptedEngine()
    assert engine.healthy
    engine.close()
    assert not engine.healthy


# The token clock


def request(tokens, **options):
    return Request(prompt=(1, 2, 3), head=Generate(max_tokens=tokens), **options)


def test_a_pace_takes_its_time_and_streams_what_it_answers():
    engine = ScriptedEngine(tokens_per_s=200)
    pieces = []
    started = time.monotonic()
    raw = engine.submit(request(20, on_delta=lambda delta: pieces.append(delta.text))).result(5)
    assert time.monotonic() - started >= 0.1
    assert raw.usage.tokens_out == 20
    assert len(pieces) > 1
    assert "".join(pieces) == raw.continuations[0].text
    assert engine.submit(request(20)).result(5).continuations[0].text == "".join(pieces)
    engine.close()


def test_a_pace_runs_as_many_at_once_as_it_has_slots():
    engine = ScriptedEngine(tokens_per_s=100, slots=2)
    first, second, third = (engine.submit(request(n)) for n in (10, 1000, 1))
    assert not third.done()
    first.result(5)
    third.result(5)
    assert not second.done()
    assert engine.stats()["running"] == 1
    engine.close()


def test_a_pace_can_be_cancelled_running_or_waiting():
    engine = ScriptedEngine(tokens_per_s=1, slots=1, remember=False)
    asked = [request(1000) for _ in range(3)]
    running, waiting, last = map(engine.submit, asked)
    assert engine.cancel(asked[0].id)
    assert engine.cancel(asked[1].id)
    assert not engine.cancel(asked[0].id)
    assert running.cancelled()
    assert waiting.cancelled()
    engine.close()
    assert isinstance(last.exception(5), EngineStopped)
    assert isinstance(engine.submit(request(1)).exception(5), EngineStopped)
    assert engine.requests == []
