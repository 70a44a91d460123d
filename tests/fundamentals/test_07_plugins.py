"""7. Plugins: a package with one hook, found through the entry-point group `gptflow`."""

import pytest

from gptflow import Generate, Generated, Input, Output, Prompt, Task, Text, hookimpl
from gptflow.errors import PluginError
from gptflow.plugins import Registry


class Name(Input):
    text: Text


class Greeting(Output):
    text: str


class Greet(Task[Name, Generated, Greeting]):
    """Greet somebody."""

    name = "hello.greet"
    prompt = Prompt("Greet {{ text }}.")
    head = Generate(max_tokens=10)

    def postprocess(self, input, raw):
        return Greeting(text=f"{raw.text} ({input.text})")


class HelloPlugin:
    """In a package these are functions of the module; here they are methods."""

    def __init__(self):
        self.finished = []

    @hookimpl
    def register_tasks(self, register):
        register(Greet())

    @hookimpl
    def register_schedules(self, register):
        register("daily", task="hello.greet", cron="0 9 * * *", input={"text": "the team"})

    @hookimpl
    def on_job_finished(self, result):
        self.finished.append(result.output)


@pytest.fixture
def plugin():
    return HelloPlugin()


@pytest.fixture
def flow_registry(plugin):
    """Overrides the fixture that says what `flow` serves: this plugin and no other."""
    registry = Registry()
    registry.register(plugin, "hello")
    return registry


def test_a_plugin_registers_its_tasks(flow_registry):
    assert flow_registry.task("hello.greet").summary == "Greet somebody."
    assert flow_registry.owners["hello.greet"] == "hello"


def test_a_worker_serves_them(flow):
    assert flow.run("hello.greet", "Ada", timeout=10) == {"text": "A scripted answer. (Ada)"}


def test_a_plugin_may_observe_the_jobs(flow, plugin):
    flow.run("hello.greet", "Ada", timeout=10)
    flow.close()  # what runs ends first, observers too
    assert plugin.finished == [{"text": "A scripted answer. (Ada)"}]


def test_a_plugin_may_run_its_tasks_on_a_schedule(flow_registry):
    schedule = flow_registry.schedules["hello.daily"]
    assert (schedule.task, schedule.cron) == ("hello.greet", "0 9 * * *")


def test_installed_plugins_are_found_by_themselves():
    registry = Registry.load()
    assert registry.plugins["text"].distribution == "gptflow"
    assert "text.generate" in registry.tasks


def test_a_plugin_that_is_wrong_is_refused_with_the_reason(flow_registry):
    class Copy:
        @hookimpl
        def register_tasks(self, register):
            register(Greet())

    with pytest.raises(PluginError, match=r"'hello\.greet' of plugin 'copy'"):
        flow_registry.register(Copy(), "copy")


def test_a_worker_refuses_to_start_with_a_broken_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gptflow_broken.py").write_text("import no_such_package\n", encoding="utf-8")
    installed = tmp_path / "gptflow_broken-1.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text("[gptflow]\nbroken = gptflow_broken\n")
    registry = Registry.load()
    assert "text.generate" in registry.tasks, "the others are not affected"
    with pytest.raises(PluginError, match=r"no_such_package.*gptflow_broken\.py:1"):
        registry.require_all()
