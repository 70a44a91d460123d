"""Settings: default < file < variable < flag, and where each one came from."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from gptflow import config
from gptflow.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_anything_set_the_defaults_hold():
    settings = config.load()
    assert settings.model == config.DEFAULT_MODEL
    assert settings.redis_url is None
    assert set(settings.sources.values()) == {"default"}


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(folder, monkeypatch):
    (folder / "gptflow.toml").write_text('slots = 2\nmodel = "file"\napp = "file"\n')
    monkeypatch.setenv("GPTFLOW_MODEL", "variable")
    monkeypatch.setenv("GPTFLOW_APP", "variable")
    settings = config.load(app="flag")
    assert (settings.slots, settings.model, settings.app) == (2, "variable", "flag")
    assert settings.sources["slots"] == "gptflow.toml"
    assert settings.sources["model"] == "GPTFLOW_MODEL"
    assert settings.sources["app"] == "flag"
    assert settings.sources["device"] == "default"


def test_a_flag_that_is_not_given_beats_nothing(monkeypatch):
    monkeypatch.setenv("GPTFLOW_MODEL", "variable")
    assert config.load(model=None).model == "variable"


def test_a_file_may_be_named(folder):
    (folder / "other.toml").write_text("slots = 3\n")
    assert config.load(folder / "other.toml").sources["slots"] == str(folder / "other.toml")


def test_a_file_that_is_named_must_exist():
    with pytest.raises(ConfigError, match=r"gone\.toml cannot be read") as caught:
        config.load(Path("gone.toml"))
    assert "--config" in caught.value.hint


@pytest.mark.parametrize("content", [b"slots = ", b"= 1", b"slots = 1\nslots = 2", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(folder, content):
    (folder / "gptflow.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"gptflow\.toml is not TOML"):
        config.load()


def test_an_unknown_name_is_answered_with_the_nearest(folder):
    (folder / "gptflow.toml").write_text("modle = 'x'\n")
    with pytest.raises(ConfigError, match="no setting 'modle'") as caught:
        config.load()
    assert caught.value.hint == "Did you mean 'model'?"


def test_an_unknown_name_like_no_other_points_to_the_list():
    with pytest.raises(ConfigError) as caught:
        config.load(zzz=1)
    assert "gptflow config show" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", "0"),
        ("slots", "many"),
        ("device", "tpu"),
        ("result_ttl", "5"),
        ("app", "Two Words"),
        ("threads", "0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"GPTFLOW_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"Setting '{name}' .GPTFLOW_{name.upper()}. must be"):
        config.load()


def test_a_variable_that_sets_nothing_is_named_with_the_nearest_setting(monkeypatch):
    for name in ("GPTFLOW_SLOTZ", "GPTFLOW_QUUX", "GPTFLOW_SLOTS", "GPTFLOW_MONITORS"):
        monkeypatch.setenv(name, "1")
    quux, slotz = config.unknown_variables()
    assert "GPTFLOW_QUUX is no setting" in quux.message
    assert "gptflow config show" in quux.hint
    assert "GPTFLOW_SLOTZ is no setting" in slotz.message
    assert slotz.hint == "Did you mean 'slots'?"


@pytest.mark.parametrize("value", ["", " , "])
def test_a_list_of_plugins_without_a_name_is_no_list(monkeypatch, value):
    monkeypatch.setenv("GPTFLOW_PLUGINS", value)
    assert config.load().plugins is None


@pytest.mark.parametrize("name", config.Settings.model_fields)
@pytest.mark.parametrize("value", ["", "{", "[1]", "\udcff"])
def test_no_variable_ever_raises_anything_else(monkeypatch, name, value):
    monkeypatch.setenv(f"GPTFLOW_{name.upper()}", value)
    with contextlib.suppress(ConfigError):
        config.load()


def test_plugins_are_listed_with_commas_or_as_a_list(folder, monkeypatch):
    assert config.load(plugins="a, b").plugins == ("a", "b")
    (folder / "gptflow.toml").write_text('plugins = ["c"]\n')
    assert config.load().plugins == ("c",)
    monkeypatch.setenv("GPTFLOW_PLUGINS", "d,e")
    assert config.load().plugins == ("d", "e")


def test_folders_may_start_at_home(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    assert config.load(cache_dir=Path("~/models")).cache_dir == folder / "models"


def test_weights_of_tenants_are_json_in_a_variable_and_a_table_in_the_file(folder, monkeypatch):
    (folder / "gptflow.toml").write_text("[tenant_weights]\nbig = 2\n")
    assert config.load().tenant_weights == {"big": 2}
    monkeypatch.setenv("GPTFLOW_TENANT_WEIGHTS", '{"small": 0.5}')
    assert config.load().tenant_weights == {"small": 0.5}
    monkeypatch.setenv("GPTFLOW_TENANT_WEIGHTS", "big=2")
    with pytest.raises(ConfigError, match="give JSON"):
        config.load()


def test_the_default_folders_are_the_platforms(monkeypatch, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "d"))
    settings = config.load()
    assert settings.cache_dir == folder / "c" / "gptflow"
    assert settings.data_dir == folder / "d" / "gptflow"


def test_the_password_is_never_printed(monkeypatch):
    url = "redis://user:hunter2@host/0"
    settings = config.load(redis_url=url)
    assert settings.broker_url == url
    for printed in (repr(settings), str(settings), str(settings.model_dump(mode="json"))):
        assert "hunter2" not in printed
    with pytest.raises(ConfigError) as caught:
        config.load(redis_url=["hunter2"])
    assert "hunter2" not in str(caught.value)


def test_settings_cannot_be_changed_once_they_are_read():
    with pytest.raises(ValueError, match="frozen"):
        config.load().slots = 5


def up(settings, **record):
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / config.UP_FILE).write_text(json.dumps(record))


def test_the_server_of_a_running_gptflow_up_is_found():
    up(config.load(), url="unix:///tmp/x.sock", pid=os.getpid())
    settings = config.load()
    assert settings.broker_url == "unix:///tmp/x.sock"
    assert settings.sources["redis_url"] == "gptflow up"


def test_a_url_that_is_given_beats_the_running_server():
    up(config.load(), url="unix:///tmp/x.sock", pid=os.getpid())
    assert config.load(redis_url="redis://mine").broker_url == "redis://mine"


@pytest.mark.parametrize("record", [{"pid": 2**22 + 1, "url": "x"}, {"url": "x"}, {}])
def test_the_trace_of_a_server_that_is_gone_is_ignored(record):
    up(config.load(), **record)
    assert config.load().broker_url is None


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://user:s3cret@host", "http://h/?k=1"]
)
def test_the_address_of_a_model_server_is_plain_and_holds_no_secret(url):
    with pytest.raises(ConfigError, match="openai_url") as caught:
        config.load(openai_url=url)
    assert "s3cret" not in str(caught.value)


def test_the_key_of_a_model_server_is_never_shown():
    settings = config.load(openai_api_key="s3cret")
    assert "s3cret" not in f"{settings} {settings.model_dump_json()}"
