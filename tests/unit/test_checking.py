"""`gptflow plugins check` finds what is wrong, and where."""

import json
import os

import pytest

from gptflow import config
from gptflow.checking import check_plugin
from gptflow.errors import PluginError
from gptflow.heads import Choose, Chosen
from gptflow.hookspecs import hookimpl
from gptflow.plugins import Registry
from gptflow.prompt import Prompt
from gptflow.task import Input, Output, Task, Text

GOOD = json.dumps({"input": {"text": "fine"}, "expected": {"label": "good"}})


class Post(Input):
    text: Text


class Mood(Output):
    label: str
    score: float = 1.0


class Read(Task[Post, Chosen, Mood]):
    """Read a mood."""

    name = "test.read"
    prompt = Prompt("Text: {{ text }}\nMood:")
    head = Choose(labels=("good", "bad"))

    def postprocess(self, input, raw):
        return Mood(label=raw.label)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check a task with these lines of examples."""

    def check(task=Read, lines=(GOOD,), hooks=None):
        if lines is not None:
            (tmp_path / "examples.jsonl").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.setattr(task, "directory", tmp_path)
        tasks = {"register_tasks": hookimpl(lambda self, register: register(task()))}
        registry = Registry()
        registry.register(type("Plugin", (), tasks if hooks is None else hooks)(), "mine")
        return check_plugin(registry, "mine")

    return check


def told(findings):
    return [(finding.severity, finding.message) for finding in findings]


def test_there_is_nothing_to_say_of_a_good_plugin(check):
    assert check() == []


def test_the_built_in_tasks_pass_their_check():
    assert check_plugin(Registry.load(["text"]), "text") == []


def test_an_unknown_plugin_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match="'txet'") as caught:
        check_plugin(Registry.load(["text"]), "txet")
    assert caught.value.hint == "Did you mean 'text'?"


def test_a_plugin_that_does_not_load_is_told_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unloadable.py").write_text("1 / 0\n", encoding="utf-8")
    info = tmp_path / "unloadable-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unloadable\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gptflow]\nunloadable = unloadable\n")
    [finding] = check_plugin(Registry.load(["unloadable"]), "unloadable")
    assert (finding.severity, finding.location) == ("error", "unloadable")
    assert "ZeroDivisionError" in finding.message
    assert f"{tmp_path / 'unloadable.py'}:1" in finding.message


def test_a_distribution_without_a_readme_is_warned_about(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "undocumented.py").write_text(
        "from gptflow import hookimpl\n@hookimpl\ndef on_alert(alert): pass\n", encoding="utf-8"
    )
    info = tmp_path / "undocumented-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[gptflow]\nundocumented = undocumented\n")
    for text, expected in (("", ["warning"]), ("\n\n# Undocumented\n\nNot so.\n", [])):
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: undocumented\nVersion: 1{text}"
        )
        findings = check_plugin(Registry.load(["undocumented"]), "undocumented")
        assert [finding.severity for finding in findings] == expected


def test_a_plugin_without_a_hook_is_warned_about(check):
    [(severity, message)] = told(check(hooks={"register_tasks": lambda self, register: None}))
    assert severity == "warning"
    assert "`@hookimpl` missing" in message


def test_a_task_that_breaks_the_contract_is_told_how_and_where(check):
    class Silent(Read):
        __doc__ = ""

    [finding] = check(Silent)
    assert finding.severity == "error"
    assert "not so: says what it does" in finding.message
    assert __file__ in finding.location


class Loose(Input):
    text: str


def test_asking_the_model_about_nothing_may_be_meant(check):
    class Accepts(Read, Task[Loose, Chosen, Mood]):
        """Read even nothing."""

    [(severity, message)] = told(check(Accepts))
    assert severity == "warning"
    assert "blank text is refused" in message


@pytest.mark.parametrize("lines", [None, [], ["", " "], ['{"task": "x.y", "input": 1}']])
def test_a_task_without_examples_is_told_where_to_put_them(check, lines, tmp_path):
    [finding] = check(lines=lines)
    assert finding.message == "Task test.read has no examples."
    assert finding.location == str(tmp_path / "examples.jsonl")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"text": "x"}', "no `input`"),
        ('{"input": {"txt": "x"}}', "fails on an example: Task 'test.read' has no input field"),
    ],
)
def test_a_wrong_example_is_named_by_its_line(check, line, complaint, tmp_path):
    findings = check(lines=[GOOD, "", line])
    mine = [finding for finding in findings if complaint in finding.message]
    assert [finding.location for finding in mine] == [f"{tmp_path / 'examples.jsonl'}:3"]


def test_a_schedule_needs_a_task_and_an_input_that_fits(check):
    def schedules(self, register):
        register("good", task="test.read", cron="0 * * * *", input="x")
        register("lost", task="test.raed", cron="0 * * * *", input="x")
        register("wrong", task="test.read", cron="0 * * * *", input={})

    tasks = hookimpl(lambda self, register: register(Read()))
    hooks = {"register_tasks": tasks, "register_schedules": hookimpl(schedules)}
    messages = [m for _, m in told(check(hooks=hooks)) if m.startswith("Schedule")]
    assert len(messages) == 2
    assert "'mine.lost'" in messages[0]
    assert "Did you mean 'test.read'?" in messages[0]
    assert "'mine.wrong'" in messages[1]


def test_a_task_that_keeps_a_state_is_warned_about_and_its_state_is_not_touched(
    check, tmp_path, monkeypatch
):
    class Counts(Read):
        """Count the posts of all times."""

        def postprocess(self, input, raw):
            state = config.load().data_dir / "count"
            count = int(state.read_text()) + 1 if state.exists() else 1
            state.write_text(str(count))
            return Mood(label=str(count))

    mine = tmp_path / "data"
    mine.mkdir()
    (mine / "count").write_text("41")
    for given in (str(mine), None):
        if given is None:
            monkeypatch.delenv("GPTFLOW_DATA_DIR")
        else:
            monkeypatch.setenv("GPTFLOW_DATA_DIR", given)
        assert {severity for severity, _ in told(check(Counts))} == {"warning"}
        assert os.environ.get("GPTFLOW_DATA_DIR") == given
    assert (mine / "count").read_text() == "41"


def test_errors_come_before_warnings(check):
    class Bad(Read, Task[Loose, Chosen, Mood]):
        __doc__ = ""

    assert [severity for severity, _ in told(check(Bad))] == ["error", "warning"]


def test_a_task_may_read_the_sources_of_its_plugin(check):
    class Reads(Read):
        """Read the mood of a feed."""

        def setup(self, ctx):
            self.sources = ctx.registry.sources

        def postprocess(self, input, raw):
            return Mood(label=self.sources["feed"]())

    hooks = {
        "register_tasks": hookimpl(lambda self, register: register(Reads())),
        "register_sources": hookimpl(lambda self, register: register("feed", lambda: "calm")),
    }
    assert check(Reads, hooks=hooks) == []


def test_a_finding_is_json(check):
    [finding] = check(lines=[])
    assert set(finding.as_dict()) == {"plugin", "severity", "message", "location"}
