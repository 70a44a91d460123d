"""10. Testing your plugin: without a model, without Redis, in milliseconds."""

import json

import pytest

from gptflow import Choose, Chosen, Input, Output, Prompt, Task, Text
from gptflow.errors import EmptyInput
from gptflow.scaffold import new_plugin
from gptflow.testing import ScriptedEngine, TaskContract, examples, registry_of, run, run_result


class Post(Input):
    text: Text


class Mood(Output):
    label: str


class ReadMood(Task[Post, Chosen, Mood]):
    """Whether a post is in a good or a bad mood."""

    name = "mood.read"
    prompt = Prompt("Post: {{ text }}\nMood:", truncate="text")
    head = Choose(labels=("good", "bad"))
    examples = "mood_examples.jsonl"

    def postprocess(self, input, raw):
        return Mood(label=raw.label)


@pytest.fixture(autouse=True)
def examples_file(tmp_path, monkeypatch):
    """A package has this file beside its module."""
    rows = [
        {"input": {"text": "What a day!"}, "expected": {"label": "good"}},
        {"input": {"text": "Not again."}, "expected": {"label": "bad"}},
    ]
    path = tmp_path / "mood_examples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(ReadMood, "directory", tmp_path)


def test_script_what_the_model_answers_and_test_what_you_make_of_it():
    assert run(ReadMood(), "What a day!", choose="good").label == "good"


def test_a_script_may_depend_on_the_prompt():
    def read(prompt, labels):
        return "good" if "!" in prompt else "bad"

    labels = [run(ReadMood(), row["input"], choose=read).label for row in examples(ReadMood())]
    assert labels == ["good", "bad"]


def test_look_at_what_the_model_was_asked():
    engine = ScriptedEngine()
    run(ReadMood(), "What a day!", engine=engine)
    assert engine.prompts == ["Post: What a day!\nMood:"]
    assert engine.requests[0].head.labels == ("good", "bad")


def test_run_raises_and_run_result_returns_the_error():
    with pytest.raises(EmptyInput):
        run(ReadMood(), " ")
    assert run_result(ReadMood(), " ").error.code == EmptyInput.code


class TestReadMood(TaskContract):
    """Eight tests that every task should pass come with GPTFlow."""

    task = ReadMood()


class TestThroughTheQueue:
    """The fixture `flow` serves whatever `flow_registry` says, here a task not installed."""

    @pytest.fixture
    def flow_registry(self):
        return registry_of(ReadMood())

    @pytest.fixture
    def scripted_engine(self):
        return ScriptedEngine(choose="good")

    def test_a_batch_goes_through(self, flow):
        batch = flow.submit_many("mood.read", [row["input"] for row in examples(ReadMood())])
        assert [r.output["label"] for r in batch.results(timeout=10)] == ["good", "good"]


def test_or_start_from_a_package_that_has_all_of_this(tmp_path):
    """From the command line: `gptflow plugins new mood --head choose`."""
    created = new_plugin("mood", head="choose", into=tmp_path)
    names = {path.name for path in created.files}
    assert {"pyproject.toml", "README.md", "examples.jsonl", "test_mood.py"} <= names
