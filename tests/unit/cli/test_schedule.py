"""`gptflow schedule` where there is no Redis; with one, see tests/integration."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gptflow.cli.session import _load_registry

DECLARED = """
from gptflow.hookspecs import hookimpl

@hookimpl
def register_schedules(register):
    register("daily", task="text.chat", input="x", cron="30 2 * * *", timezone="Europe/Berlin")
    register("pulse", task="text.chat", input="x", every=1.0, overlap="skip")
"""


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a plugin `mine` with this code."""
    monkeypatch.setenv("GPTFLOW_PLUGINS", "text,mine")
    monkeypatch.syspath_prepend(tmp_path)

    def install(code: str) -> None:
        (tmp_path / "gptflow_mine.py").write_text(code, encoding="utf-8")
        info = tmp_path / "gptflow_mine-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "entry_points.txt").write_text("[gptflow]\nmine = gptflow_mine\n")
        _load_registry.cache_clear()
        monkeypatch.delitem(__import__("sys").modules, "gptflow_mine", raising=False)

    yield install
    _load_registry.cache_clear()


def test_the_list_says_what_runs_when(gptflow: Any, declare: Any) -> None:
    declare(DECLARED)
    outcome = gptflow("schedule", "list", "--json")
    daily, pulse = outcome.json
    assert (daily["name"], daily["task"]) == ("mine.daily", "text.chat")
    assert (daily["cron"], daily["timezone"]) == ("30 2 * * *", "Europe/Berlin")
    assert (daily["last_fire"], daily["job"], daily["paused"]) == (None, None, False)
    assert (pulse["every"], pulse["overlap"], pulse["policy"]) == (1.0, "skip", "last")
    due = datetime.fromisoformat(pulse["next"]) - datetime.now(UTC)
    assert timedelta(seconds=-5) < due <= timedelta(seconds=1)
    assert "No Redis is configured" in outcome.err
    shown = gptflow("schedule", "list").out
    assert "30 2 * * * Europe/Berlin" in shown
    assert "every 1 s" in shown


def test_the_next_fires_are_shown_on_both_clocks(gptflow: Any, declare: Any) -> None:
    declare(DECLARED)
    rows = gptflow("schedule", "next", "mine.daily", "-n", "400", "--json").json
    assert len(rows) == 400
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(times)
    assert all(
        datetime.fromisoformat(row["local"]) == t for row, t in zip(rows, times, strict=True)
    )
    # Once a day, through both changes of the clocks.
    assert len({row["local"][:10] for row in rows}) == 400
    assert len(gptflow("schedule", "next", "mine.pulse", "--json").json) == 5
    assert "Europe/Berlin" in gptflow("schedule", "next", "mine.daily").out


@pytest.mark.parametrize("command", ["next", "run", "pause", "resume"])
def test_a_schedule_that_does_not_exist_is_answered_with_the_nearest(
    gptflow: Any, declare: Any, command: str
) -> None:
    declare(DECLARED)
    outcome = gptflow("schedule", command, "mine.dayly")
    assert outcome.code == 3
    assert "Did you mean 'mine.daily'?" in outcome.err


@pytest.mark.parametrize("command", ["run", "pause", "resume"])
def test_what_needs_redis_says_so(gptflow: Any, declare: Any, command: str) -> None:
    declare(DECLARED)
    outcome = gptflow("schedule", command, "mine.daily")
    assert outcome.code == 10
    assert "GPTFLOW_REDIS_URL" in outcome.err


def test_without_schedules_the_list_says_where_they_come_from(gptflow: Any, declare: Any) -> None:
    declare("")
    assert "There are no schedules. Plugins register schedules" in gptflow("schedule", "list").err


@pytest.mark.parametrize(
    ("options", "complaint", "advice"),
    [
        ("cron='0 0 31 2 *', task='text.chat'", "would never fire", "cron='0 0 1 * *'"),
        ("cron='0 9 * * *', task='text.chatt'", "no task 'text.chatt'", "'text.chat'"),
        (
            "cron='0 9 * * *', task='text.chat', timezone='Mars/Phobos'",
            "time zone 'Mars/Phobos'",
            "'Europe/Berlin'",
        ),
    ],
)
def test_doctor_and_beat_name_a_schedule_that_will_not_do(
    gptflow: Any, declare: Any, options: str, complaint: str, advice: str
) -> None:
    declare(
        "from gptflow.hookspecs import hookimpl\n@hookimpl\ndef register_schedules(register):\n"
        f"    register('daily', input='x', {options})\n"
    )
    outcome = gptflow("doctor", "--json")
    assert outcome.code == 1
    [found] = [f for f in outcome.json if complaint in f["detail"]]
    assert "'mine.daily'" in found["detail"]
    assert advice in found["hint"]
    _load_registry.cache_clear()
    outcome = gptflow("--redis", "redis://127.0.0.1:1", "beat")
    assert outcome.code == 7
    assert "GF206" in outcome.err
    assert "'mine.daily'" in outcome.err
    assert complaint in outcome.err
    assert advice in outcome.err


def test_doctor_lists_schedules(gptflow: Any, declare: Any) -> None:
    declare(DECLARED)
    found = {finding["check"]: finding for finding in gptflow("doctor", "--json").json}
    assert found["schedule mine.pulse"]["status"] == "ok"
    assert found["schedule mine.pulse"]["detail"] == "text.chat, every 1 s"
