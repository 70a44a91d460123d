"""The commands that list, show and check."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gptflow import cli


def test_help_lists_every_command_without_importing_one(gptflow: Any) -> None:
    out = gptflow("--help").out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(gptflow: Any, name: str) -> None:
    outcome = gptflow(name, "--help")
    assert outcome.code == 0
    assert "Usage: gptflow" in outcome.out


def test_the_exit_codes_in_the_help_are_those_of_the_errors(gptflow: Any) -> None:
    from gptflow.errors import GPTFlowError

    out = gptflow("--help").out

    def walk(error: type[GPTFlowError]) -> None:
        assert f" {error.exit_code} " in out
        for child in error.__subclasses__():
            walk(child)

    walk(GPTFlowError)


def test_plugins_list_shows_the_built_in_tasks(gptflow: Any) -> None:
    rows = {row["name"]: row for row in gptflow("plugins", "list", "--json").json}
    assert "text.chat" in rows["text"]["tasks"]
    assert rows["text"]["error"] is None
    assert "text.chat" in gptflow("plugins", "list").out


def test_plugins_show_gives_a_tasks_schemas_and_a_call_that_works(gptflow: Any) -> None:
    [shown] = gptflow("plugins", "show", "text.classify", "--json").json
    assert "labels" in shown["input"]["properties"]
    assert shown["try"].startswith("gptflow run text.classify")
    assert "labels: list of text, 2 to 256 items (required)" in (
        gptflow("plugins", "show", "text.classify").out
    )


def test_plugins_show_says_what_the_objects_in_an_input_hold(gptflow: Any) -> None:
    lines = [line.strip() for line in gptflow("plugins", "show", "text.chat").out.splitlines()]
    assert "input      messages: list of Turn, 1 or more items (required)" in lines
    assert "role: 'system' | 'user' | 'assistant' (required)" in lines
    assert "max_tokens: whole number, 1 to 4096 = 128" in lines


def test_plugins_show_names_what_does_not_exist(gptflow: Any) -> None:
    assert gptflow("plugins", "show", "text.classfy").code == 4


def test_config_show_says_where_a_value_comes_from(
    gptflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gptflow.toml").write_text("slots = 5\n")
    monkeypatch.setenv("GPTFLOW_REDIS_URL", "redis://:s3cret@localhost/0")
    outcome = gptflow("config", "show", "--json")
    rows = {row["name"]: row for row in outcome.json}
    assert (rows["slots"]["value"], rows["slots"]["source"]) == (5, "gptflow.toml")
    assert rows["redis_url"]["source"] == "GPTFLOW_REDIS_URL"
    assert "s3cret" not in outcome.out
    assert "gptflow.toml" in gptflow("config", "show").out


def test_config_check_refuses_a_misspelt_name(gptflow: Any, tmp_path: Path) -> None:
    assert gptflow("config", "check").code == 0
    (tmp_path / "other.toml").write_text("slotz = 5\n")
    outcome = gptflow("-c", "other.toml", "config", "check")
    assert outcome.code == 10
    assert "Did you mean 'slots'?" in outcome.err


def test_a_running_up_is_found_without_being_told(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    record = tmp_path / "data" / "up.json"
    record.write_text(json.dumps({"url": "redis://127.0.0.1:1/0", "pid": os.getpid()}))
    rows = {row["name"]: row for row in gptflow("config", "show", "--json").json}
    assert rows["redis_url"]["source"] == "gptflow up"
    record.write_text(json.dumps({"url": "redis://127.0.0.1:1/0", "pid": 2**30}))
    rows = {row["name"]: row for row in gptflow("config", "show", "--json").json}
    assert rows["redis_url"]["source"] == "default"


def test_models_show_says_what_to_type_for_a_model_that_is_not_there(
    gptflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_CACHE_DIR", str(tmp_path / "cache"))
    assert gptflow("models", "list", "--json").json == []
    outcome = gptflow("models", "show", "smollm2-135m-instruct")
    assert outcome.code == 6
    assert "gptflow models pull smollm2-135m-instruct" in outcome.err


@pytest.mark.model
def test_models_show_gives_the_folder(gptflow: Any) -> None:
    model = gptflow("models", "show", "smollm2-135m-instruct", "--json").json
    assert (Path(model["path"]) / "model.safetensors").is_file()
    listed = gptflow("models", "list", "--json").json
    assert model["name"] in [row["name"] for row in listed]


def test_completion_prints_a_script(gptflow: Any) -> None:
    assert "_GPTFLOW_COMPLETE" in gptflow("completion", "bash").out


@pytest.mark.parametrize("port", ["-1", "65536", "many"])
def test_a_port_that_is_none_is_refused(gptflow: Any, port: str) -> None:
    outcome = gptflow("worker", "--metrics-port", port)
    assert outcome.code == 2
    assert "--metrics-port" in outcome.err


def test_workers_of_gptflow_up_have_ports_of_their_own() -> None:
    from gptflow.cli.up import _ports
    from gptflow.config import Settings

    assert _ports(Settings(), 2) == {}
    assert _ports(Settings(metrics_port=0), 2) == {}
    ports = [_ports(Settings(metrics_port=9464), n)["GPTFLOW_METRICS_PORT"] for n in (1, 2, 3)]
    assert ports == ["9464", "9465", "9466"]


def test_queue_acl_prints_the_rights_of_a_role_for_the_application(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptflow.queue.acl import rules

    monkeypatch.setenv("GPTFLOW_APP", "shop")
    outcome = gptflow("queue", "acl", "caller")
    assert outcome.code == 0
    assert outcome.out == rules("caller", "shop") + "\n"
    assert "~gf:{shop}:job:*" in outcome.out
    assert gptflow("queue", "acl", "root").code == 2


def test_a_misspelt_noun_is_answered_with_the_right_one(gptflow: Any) -> None:
    outcome = gptflow("qeue", "show")
    assert outcome.code == 2
    assert "queue" in outcome.err


def test_doctor_knows_that_a_scripted_model_is_none(gptflow: Any) -> None:
    found = {finding["check"]: finding for finding in gptflow("doctor", "--json").json}
    assert found["model"]["status"] == "warning"


@pytest.mark.parametrize("url", ["http://host", "redis://host:port"])
def test_config_check_refuses_a_url_that_no_queue_has(gptflow: Any, url: str) -> None:
    assert gptflow("--redis", url, "config", "check").code == 10
    assert gptflow("--redis", "redis://127.0.0.1:1", "config", "check").code == 0


def test_up_refuses_a_queue_that_no_other_process_sees(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_REDIS_URL", "memory://")
    outcome = gptflow("up")
    assert outcome.code == 10
    assert "memory://" in outcome.err


def test_up_refuses_to_start_twice(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    record = {"url": "redis://127.0.0.1:1/0", "pid": os.getpid()}
    (tmp_path / "data" / "up.json").write_text(json.dumps(record))
    outcome = gptflow("up")
    assert outcome.code == 10
    assert "running already" in outcome.err


@pytest.mark.parametrize("value", ["nan", "inf", "0", "many"])
def test_a_simulation_needs_numbers_that_a_feed_can_have(gptflow: Any, value: str) -> None:
    assert gptflow("monitor", "simulate", "--base", value).code == 2


def test_doctor_looks_at_packages_and_plugins(
    gptflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GPTFLOW_MODEL", "smollm2-135m-instruct")
    outcome = gptflow("doctor", "--json")
    found = {finding["check"]: finding for finding in outcome.json}
    assert found["python"]["status"] == "ok"
    assert found["plugin text"]["status"] == "ok"
    assert found["redis"]["status"] == "warning"
    assert found["model"]["status"] == "error"
    assert outcome.code == 1
    assert "gptflow models pull" in gptflow("doctor").out


@pytest.mark.parametrize("name", ["text", "sentiment_monitoring"])
def test_plugins_check_finds_nothing_wrong_with_our_own(gptflow: Any, name: str) -> None:
    outcome = gptflow("plugins", "check", name, "--json")
    assert outcome.code == 0, outcome.out


def test_plugins_new_writes_a_package_and_says_what_to_type_next(
    gptflow: Any, tmp_path: Path
) -> None:
    outcome = gptflow("plugins", "new", "mood", "--head", "choose")
    assert outcome.code == 0
    assert (tmp_path / "gptflow-mood" / "pyproject.toml").is_file()
    assert len(outcome.out.partition("Next:\n")[2].strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("Bad-Name",), "Did you mean 'bad_name'?"),
        (("class",), "Did you mean 'class_plugin'?"),
        (("mood", "--head", "chose"), "Did you mean 'choose'?"),
        (("taken",), "is not an empty folder"),
    ],
)
def test_a_plugin_that_cannot_be_written_is_wrong_usage_not_a_broken_plugin(
    gptflow: Any, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    (tmp_path / "gptflow-taken").mkdir()
    (tmp_path / "gptflow-taken" / "file").touch()
    outcome = gptflow("plugins", "new", *args)
    assert outcome.code == 2
    assert says in outcome.err


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_plugin_that_is_not_installed_is_answered_with_the_nearest(
    gptflow: Any, command: str
) -> None:
    outcome = gptflow("plugins", command, "txet")
    assert outcome.code == 4
    assert "Did you mean 'text'?" in outcome.err


@pytest.mark.parametrize(
    ("args", "makes_one"),
    [
        (("models", "list"), "gptflow models pull"),
        (("monitor", "list"), "gptflow monitor run"),
        (("monitor", "alerts"), "gptflow monitor run"),
    ],
)
def test_where_there_is_nothing_to_list_one_line_says_so_and_what_makes_something(
    gptflow: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    makes_one: str,
) -> None:
    monkeypatch.setenv("GPTFLOW_CACHE_DIR", str(tmp_path / "cache"))
    outcome = gptflow(*args)
    assert (outcome.code, outcome.out) == (0, "")
    assert makes_one in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert gptflow(*args, "--json").json == []


def test_a_misspelt_variable_is_named_and_fails_the_check(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_SLOTZ", "3")
    outcome = gptflow("config", "check")
    assert (outcome.code, outcome.out) == (10, "")
    assert "GPTFLOW_SLOTZ" in outcome.err
    assert "Did you mean 'slots'?" in outcome.err
    outcome = gptflow("run", "text.chat", "Hi")
    assert outcome.code == 0
    assert outcome.err.count("GPTFLOW_SLOTZ") == 1


def test_a_monitors_source_that_is_not_there_is_named_with_its_option(gptflow: Any) -> None:
    outcome = gptflow("monitor", "run", "markets", "--source", "nofile.jsonl")
    assert outcome.code == 2
    assert "--source" in outcome.err
    assert "There is no file 'nofile.jsonl'" in outcome.err


def test_a_queue_that_ends_with_the_process_has_no_jobs_to_show(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_REDIS_URL", "memory://")
    outcome = gptflow("jobs", "list")
    assert outcome.code == 10
    assert "gptflow up" in outcome.err


def test_a_broken_pipe_is_not_an_error(gptflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("gptflow.cli.cli.main", broken)
    monkeypatch.setattr("sys.stderr.close", lambda: None, raising=False)
    assert gptflow("--help").code == 0


def test_jobs_need_a_queue(gptflow: Any) -> None:
    outcome = gptflow("jobs", "list")
    assert outcome.code == 10
    assert "gptflow up" in outcome.err


def test_the_redis_in_use_is_shown_without_its_password(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_REDIS_URL", "redis://:s3cret@somewhere:6379/0")
    rows = {row["name"]: row for row in gptflow("config", "show", "--json").json}
    assert rows["redis_url"]["value"] == "redis://:***@somewhere:6379/0"


def test_models_pull_asks_for_the_terms_of_gemma_to_be_accepted(
    gptflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GPTFLOW_OFFLINE", "1")
    refused = gptflow("models", "pull", "gemma-3-270m")
    assert refused.code == 6
    assert "https://ai.google.dev/gemma/terms" in refused.err
    assert "gptflow models pull gemma-3-270m --accept-licence gemma" in refused.err
    # Either way of agreeing gets as far as the sources, which are off line.
    accepted = gptflow("models", "pull", "gemma-3-270m", "--accept-licence", "gemma")
    monkeypatch.setenv("GPTFLOW_ACCEPT_LICENCES", "gemma")
    assert "offline" in accepted.err
    assert "offline" in gptflow("models", "pull", "gemma-3-270m").err
