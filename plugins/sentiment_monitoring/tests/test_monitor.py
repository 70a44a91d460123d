"""`sentiment.monitor`, from the feed to the alert, on a scripted engine."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptflow import config, hookimpl
from gptflow.config import Settings
from gptflow.context import Job
from gptflow.executor import Executor
from gptflow.plugins import Registry
from gptflow.result import Result
from gptflow.testing import ScriptedEngine, examples
from gptflow_sentiment_monitoring.classify import ClassifyPost
from gptflow_sentiment_monitoring.monitor import RunMonitor
from gptflow_sentiment_monitoring.sample import read_sample

BAD = (
    "loss",
    "plunge",
    "slide",
    "tumble",
    "sink",
    "drop",
    "cut to",
    "slump",
    "panic",
    "fraud",
    "crash",
    "crisis",
    "junk",
    "collapse",
    "probe",
    "quit",
    "halts",
)
AFTER = "2026-03-26T00:00:00Z"


def mood(text: str, labels: tuple[str, ...]) -> str:
    post = text.rpartition("Post: ")[2].rpartition("\n")[0].lower()
    if "negative" not in labels:
        return "Financials" if "bank" in post else "Company | Product News"
    return "negative" if any(word in post for word in BAD) else "neutral"


class Desk:
    """A plugin with the tasks under test that notes the alerts it is told of."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.registry = Registry()
        self.settings = settings
        self.alerts: list[Mapping[str, Any]] = []
        self.registry.register(self, "desk")
        self.engine = ScriptedEngine(choose=mood)

    @hookimpl
    def register_tasks(self, register: Any) -> None:
        register(ClassifyPost())
        register(RunMonitor())

    @hookimpl
    def register_sources(self, register: Any) -> None:
        register("sample", read_sample)

    @hookimpl
    def on_alert(self, alert: Mapping[str, Any]) -> None:
        self.alerts.append(alert)

    def result(self, input: Any, job_id: str = "job_test") -> Result:
        job = Job(id=job_id, task="sentiment.monitor", input=input)
        executor = Executor(self.engine, self.registry, settings=self.settings)
        return asyncio.run(executor.run(job))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_sample_feed_raises_an_alert(desk: Desk) -> None:
    output = desk.result({"name": "market", "source": "sample:market", "now": AFTER}).unwrap()
    assert output["status"] == "ok"
    assert output["new"] == output["read"] == 204
    assert output["duplicates"] == 9
    assert output["failed"] == output["bad_rows"] == 0
    alert = next(a for a in output["alerts"] if a["topic"] == "Financials")
    assert alert["window"]["from"].startswith("2026-03-2")
    assert all("Bank" in example["text"] for example in alert["examples"])
    assert len(desk.alerts) == len(output["alerts"])
    assert json.dumps(output["alerts"])


def test_the_job_is_its_own_fire(desk: Desk) -> None:
    given = {"name": "market", "source": "sample:market", "now": AFTER}
    first, again = desk.result(given, "job_a").unwrap(), desk.result(given, "job_a").unwrap()
    assert not first["repeated"]
    assert again["repeated"]
    assert desk.result(given, "job_b").unwrap()["new"] == 0
    assert len(desk.alerts) == len(first["alerts"])


def test_a_declared_monitor_needs_its_name_only(desk: Desk, data_dir: Path) -> None:
    (data_dir / "feed.csv").write_text("id,text,ts\n1,Shares sink,2026-03-02T09:00:00Z\nbad,,\n")
    (data_dir / "monitors.toml").write_text(
        '[[monitor]]\nname = "desk"\nsource = "feed.csv"\ncron = "0 * * * *"\n'
    )
    result = desk.result("desk")
    assert (result.output["new"], result.output["bad_rows"]) == (1, 1)
    assert result.output["bad"] == [{"line": 3, "reason": "text is missing or blank"}]
    assert result.warnings[0].startswith("insufficient_history")


def test_a_worker_with_settings_of_its_own_keeps_to_its_data_folder(
    data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("production")
    (folder / "feed.csv").write_text("text,ts\nShares sink,2026-03-02T09:00:00Z\n")
    (folder / "monitors.toml").write_text('[[monitor]]\nname = "desk"\nsource = "feed.csv"\n')
    desk = Desk(config.load().model_copy(update={"data_dir": folder}))
    assert desk.result("desk").unwrap()["new"] == 1
    assert (folder / "monitors.sqlite3").is_file()
    assert not list(data_dir.iterdir())


def test_rows_may_come_with_the_job(desk: Desk) -> None:
    rows = [{"id": "a", "text": "Shares sink", "ts": 1772442000}]
    assert desk.result({"name": "mine", "rows": rows}).output["classified"] == 1


@pytest.mark.parametrize(
    "given",
    [
        {"name": "x"},
        {"name": "x", "source": "/etc/hostname.csv"},
        {"name": "x", "source": "../monitors.sqlite3"},
        {"name": "x", "source": "jsonl:/etc/hostname"},
        {"name": "x", "source": "sample:nothing"},
        {"name": "x", "source": "sample:market", "rows": []},
        {"name": "x", "source": "sample:market", "now": "soon"},
        {"name": "x", "source": "sample:market", "options": {"buckets": 1}},
        {"name": "../x", "source": "sample:market"},
    ],
)
def test_what_does_not_fit_is_refused(desk: Desk, given: Any) -> None:
    result = desk.result(given)
    assert result.error is not None
    assert result.error.code == "GF300"


def test_declared_monitors_with_a_cron_expression_are_scheduled(data_dir: Path) -> None:
    (data_dir / "monitors.toml").write_text(
        '[[monitor]]\nname = "hourly"\nsource = "a.csv"\ncron = "0 * * * *"\n'
        '[[monitor]]\nname = "by-hand"\nsource = "b.csv"\n'
    )
    (schedule,) = Registry.load(["sentiment_monitoring"]).schedules.values()
    assert schedule.name == "sentiment_monitoring.hourly"
    assert (schedule.task, schedule.cron) == ("sentiment.monitor", "0 * * * *")
    assert schedule.input == {"name": "hourly"}


def test_the_examples_run(desk: Desk) -> None:
    for number, row in enumerate(examples(RunMonitor())):
        assert desk.result(row["input"], f"job_{number}").ok
