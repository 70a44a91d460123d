"""The registry: a plugin that is broken breaks alone, and says where."""

import logging
import re
import sys
import textwrap
from pathlib import Path

import pytest

from gptflow.errors import DuplicateTask, PluginError, PluginLoadError, PromptError, TaskNotFound
from gptflow.heads import Generate, Generated
from gptflow.hookspecs import hookimpl
from gptflow.plugins import Registry, default_registry
from gptflow.prompt import Prompt
from gptflow.task import Input, Output, Task, Text

HEADER = """
from gptflow import Generate, Generated, Input, Output, Prompt, Task, Text, hookimpl

class In(Input):
    text: Text

class Out(Output):
    text: str

class Say(Task[In, Generated, Out]):
    "Say it."
    name = "NAME.say"
    prompt = Prompt("{{ text }}")
    head = Generate()

"""
GOOD = HEADER + "@hookimpl\ndef register_tasks(register):\n    register(Say())\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs plugins as pip does: a module and a .dist-info with its entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    installed = []

    def install(name, source):
        module = f"installed_{name}"
        text = textwrap.dedent(source).replace("NAME", name)
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[gptflow]\n{name} = {module}\n")
        installed.append(module)
        return tmp_path / f"{module}.py"

    yield install
    for module in installed:
        sys.modules.pop(module, None)


def line_of(path, text):
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if text in line)


def test_an_installed_plugin_is_found_and_described(install):
    install("good", GOOD)
    info = Registry.load().plugins["good"]
    assert (info.distribution, info.version) == ("installed_good", "1.2")
    assert (info.tasks, info.hooks, info.error) == (("good.say",), ("register_tasks",), None)


def test_the_built_in_tasks_are_a_plugin_like_any_other():
    registry = Registry.load(["text"])
    assert "text.generate" in registry.tasks
    assert set(registry.owners.values()) == {"text"}


BROKEN = {
    "raises when imported": ("import gptflow\n1 / 0\n", "ZeroDivisionError", "1 / 0"),
    "does not parse": ("import gptflow\ndef broken(:\n", "SyntaxError", "def broken"),
    "imports what is not there": ("import no_such_module\n", "No module named", "import no_such"),
    "registers a class": (
        GOOD.replace("Say()", "Say"),
        "'Say', which is not a Task instance",
        "register(Say)",
    ),
    "registers something else": (
        GOOD.replace("Say()", "5"),
        "'int', which is not a Task instance",
        "register(5)",
    ),
    "misspells a hook": (
        GOOD.replace("register_tasks", "register_task"),
        "'register_task', which is not a hook",
        "@hookimpl",
    ),
    "misspells a hook's argument": (
        GOOD.replace("(register)", "(registerr)"),
        "hook 'register_tasks' has no argument 'registerr'",
        "@hookimpl",
    ),
    "raises in a hook": (
        GOOD.replace("register(Say())", "raise KeyError('x')"),
        "KeyError",
        "raise KeyError",
    ),
    "raises in a library": (
        GOOD.replace("register(Say())", "import json; json.loads('[')"),
        "JSONDecodeError",
        "json.loads",
    ),
    "uses a variable that is not there": (
        GOOD.replace("{{ text }}", "{{ txt }}"),
        "'txt'",
        "class Say",
    ),
    "has a task without a name": (
        GOOD.replace('name = "NAME.say"', ""),
        "needs a `name`",
        "class Say",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_plugin_that_is_broken_breaks_alone_and_says_where(install, what):
    source, complaint, culprit = BROKEN[what]
    path = install("broken", source)
    install("good", GOOD)
    registry = Registry.load()
    assert "good.say" in registry.tasks
    assert not any(name.startswith("broken.") for name in registry.tasks)
    error = registry.plugins["broken"].error
    assert isinstance(error, PluginError)
    assert complaint in str(error)
    if culprit:
        assert f"{path}:{line_of(path, culprit)}" in str(error)
    with pytest.raises(PluginError):
        registry.require_all()


def test_a_task_of_a_broken_plugin_is_not_taken_for_a_misspelt_one_of_another(install):
    install("brokem", GOOD)
    install("broken", "1 / 0")
    with pytest.raises(TaskNotFound) as caught:
        Registry.load().task("broken.say")
    assert "Plugins that failed to load: broken" in caught.value.hint


def test_a_class_that_was_registered_is_told_how_to_be_an_instance(install):
    install("broken", GOOD.replace("Say()", "Say"))
    assert Registry.load().plugins["broken"].error.hint == "Write `register(Say())`."


def test_a_misspelt_hook_is_answered_with_the_nearest(install):
    install("broken", GOOD.replace("register_tasks", "register_taks"))
    assert Registry.load().plugins["broken"].error.hint == "Did you mean 'register_tasks'?"


def test_a_taken_name_names_both_tasks_and_takes_nothing_of_the_second(install):
    first = install("first", GOOD)
    second = install(
        "second",
        GOOD.replace('"NAME.say"', '"first.say"').replace(
            "    register(Say())",
            "    class Other(Say):\n        name = 'second.other'\n"
            "    register(Other())\n    register(Say())",
        ),
    )
    registry = Registry.load()
    error = registry.plugins["second"].error
    assert isinstance(error, DuplicateTask)
    assert f"{first}:{line_of(first, 'class Say')}" in error.message
    assert f"{second}:{line_of(second, 'class Say')}" in error.message
    assert registry.owners["first.say"] == "first"
    assert "second.other" not in registry.tasks


def test_only_the_plugins_that_are_named_are_imported(install):
    install("good", GOOD)
    install("broken", "1 / 0")
    registry = Registry.load(only=["good", "good"])
    registry.require_all()
    assert set(registry.plugins) == {"good"}
    assert "installed_broken" not in sys.modules


def test_a_plugin_that_is_not_installed_is_answered_with_the_nearest(install):
    install("finance", GOOD)
    with pytest.raises(PluginError, match="'finanse'") as caught:
        Registry.load(only=["finanse"])
    assert caught.value.hint == "Did you mean 'finance'?"


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(TaskNotFound, match=r"'text\.generat'") as caught:
        Registry.load(["text"]).task("text.generat")
    assert caught.value.hint == "Did you mean 'text.generate'?"


def test_an_unknown_task_may_be_one_of_a_plugin_that_failed_to_load(install):
    install("broken", "1 / 0")
    with pytest.raises(TaskNotFound) as caught:
        Registry.load(["broken"]).task("zzz.qqq")
    assert "broken" in caught.value.hint


def test_the_default_registry_is_loaded_once():
    assert default_registry() is default_registry()


# Plugins that are objects


class Post(Input):
    text: Text


class Echoed(Output):
    text: str


class Say(Task[Post, Generated, Echoed]):
    """Say it."""

    name = "test.say"
    prompt = Prompt("{{ text }}")
    head = Generate()


def plugin(**hooks):
    """An object with these hooks."""
    return type("Plugin", (), {name: staticmethod(hookimpl(f)) for name, f in hooks.items()})()


def test_everything_that_a_plugin_registers_is_found_under_its_name():
    registry = Registry()
    registry.register(
        plugin(
            register_tasks=lambda register: register(Say()),
            register_schedules=lambda register: register(
                "hourly", task="test.say", cron="0 * * * *", input={"text": "x"}
            ),
            register_metrics=lambda register: register("exact", lambda a, b: 1.0),
            register_sources=lambda register: register("rows", lambda place: [{"text": place}]),
            register_heads=lambda register: register(Generate, "somewhere:Computation"),
        ),
        "mine",
    )
    schedule = registry.schedules["mine.hourly"]
    assert (schedule.task, schedule.cron, schedule.plugin) == ("test.say", "0 * * * *", "mine")
    assert registry.metrics["exact"](1, 1) == 1.0
    assert list(registry.sources["rows"]("here")) == [{"text": "here"}]
    assert registry.heads == {Generate: "somewhere:Computation"}
    assert registry.owners == {"test.say": "mine"}


def test_a_plugin_that_fails_halfway_leaves_nothing_behind():
    registry = Registry()
    heard = []
    bad = plugin(
        register_tasks=lambda register: register(Say()),
        register_metrics=lambda register: 1 / 0,
        on_alert=lambda alert: heard.append(alert),
    )
    with pytest.raises(PluginLoadError, match="ZeroDivisionError"):
        registry.register(bad, "bad")
    registry.observe("on_alert", alert={})
    assert (registry.tasks, registry.plugins, heard) == ({}, {}, [])
    registry.register(plugin(register_tasks=lambda register: register(Say())), "bad")
    assert registry.owners == {"test.say": "bad"}


def test_a_hook_with_a_wrong_argument_leaves_nothing_behind():
    registry = Registry()
    heard = []
    bad = plugin(on_alert=lambda alert: heard.append(alert), register_tasks=lambda registerr: None)
    with pytest.raises(PluginLoadError) as caught:
        registry.register(bad, "bad")
    assert "Plugin 'bad': hook 'register_tasks' has no argument 'registerr'" in caught.value.message
    assert Path(__file__).name in caught.value.message
    assert caught.value.hint == "It is given 'register'."
    registry.observe("on_alert", alert={})
    assert heard == []


def test_a_name_is_registered_once_and_the_first_stays():
    registry = Registry()
    first = plugin(register_tasks=lambda register: register(Say()))
    registry.register(first, "mine")
    for again, name in ((plugin(), "mine"), (first, "other")):
        with pytest.raises(PluginError, match="registered already"):
            registry.register(again, name)
    assert registry.task("test.say")
    assert set(registry.plugins) == {"mine"}


def test_an_observer_that_raises_stops_nobody(caplog):
    registry = Registry()
    heard = []

    def shout(alert):
        raise RuntimeError("no")

    registry.register(plugin(on_alert=lambda alert: heard.append(("a", alert))), "a")
    registry.register(plugin(on_alert=shout), "b")
    registry.register(plugin(on_alert=lambda alert: heard.append(("c", alert))), "c")
    with caplog.at_level(logging.ERROR):
        registry.observe("on_alert", alert={"n": 1})
    assert sorted(name for name, _ in heard) == ["a", "c"]
    assert "Plugin b: on_alert raised RuntimeError" in caplog.text


def test_an_observer_takes_only_the_arguments_it_wants():
    registry = Registry()
    heard = []
    registry.register(plugin(on_job_failed=lambda error: heard.append(error)), "a")
    registry.observe("on_job_failed", envelope="e", error="x")
    assert heard == ["x"]


def test_a_plugin_that_fails_to_add_its_command_leaves_the_rest(caplog):
    import click

    registry = Registry()
    registry.register(plugin(register_commands=lambda cli: 1 / 0), "bad")
    registry.register(
        plugin(register_commands=lambda cli: cli.add_command(click.Command("hello"))), "good"
    )
    cli = click.Group()
    registry.add_commands(cli)
    assert set(cli.commands) == {"hello"}
    assert "Plugin bad: register_commands raised ZeroDivisionError" in caplog.text


def test_a_prompt_error_keeps_its_class_and_line():
    class Misspelt(Say):
        prompt = Prompt("{{ txt }}")

    with pytest.raises(PromptError, match=re.escape(__file__)):
        Registry().register(plugin(register_tasks=lambda register: register(Misspelt())), "p")


def test_two_distributions_of_one_plugin_name_are_both_named(install, tmp_path):
    install("twin", GOOD)
    other = tmp_path / "rival-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[gptflow]\ntwin = somewhere_else\n")
    registry = Registry.load(["twin"])
    message = str(registry.plugins["twin"].error)
    assert "installed_twin" in message
    assert "rival" in message
    assert not registry.tasks


def test_a_source_of_a_taken_name_is_refused():
    class Feeds:
        @hookimpl
        def register_sources(self, register):
            register("feed", lambda location: [])

    registry = Registry()
    registry.register(Feeds(), "first")
    with pytest.raises(PluginLoadError, match="source 'feed'"):
        registry.register(Feeds(), "second")


def test_a_plugin_that_exits_on_import_breaks_alone(install):
    install("quitter", "raise SystemExit(3)")
    registry = Registry.load(["text", "quitter"])
    assert "SystemExit" in str(registry.plugins["quitter"].error)
    assert "text.chat" in registry.tasks


def test_whoever_takes_a_built_in_name_is_in_the_wrong(install):
    install("greedy", GOOD.replace("test.NAME", "text.chat").replace("NAME.say", "text.chat"))
    registry = Registry.load(["greedy", "text"])
    assert "text.chat" in registry.tasks
    assert registry.plugins["text"].error is None
