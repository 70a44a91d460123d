"""The embedded server: private, durable, and gone when its owner is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from gptflow.errors import BrokerUnavailable, ConfigError, MissingDependency
from gptflow.queue import embedded
from gptflow.queue.embedded import EmbeddedServer, find_server


def connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def test_it_answers_once_started_and_is_private() -> None:
    with EmbeddedServer() as server:
        client = connect(server.url)
        assert client.ping()
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        # What it keeps goes with it: a slow disk has no say in how fast it answers.
        assert client.config_get("appendonly")["appendonly"] == "no"
        client.close()
        folder = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert server.description
    assert not folder.exists()


def test_its_data_outlives_it(tmp_path: Path) -> None:
    for expected in (None, "here"):
        with EmbeddedServer(tmp_path / "data") as server, connect(server.url) as client:
            assert client.config_get("appendonly")["appendonly"] == "yes"
            assert client.get("key") == expected
            client.set("key", "here")


def test_it_has_loaded_its_data_once_started(tmp_path: Path) -> None:
    fill = "for i = 1, 300000 do redis.call('SET', i, i) end"
    with EmbeddedServer(tmp_path) as server, connect(server.url) as client:
        client.eval(fill, 0)
    with EmbeddedServer(tmp_path) as server, connect(server.url) as client:
        assert client.get("300000") == "300000"


def test_two_cannot_share_a_folder(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path), pytest.raises(ConfigError, match="Another server"):
        EmbeddedServer(tmp_path).start()
    with EmbeddedServer(tmp_path):
        pass


def test_where_a_sockets_path_would_be_too_long_it_takes_a_port_and_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedServer() as server:
        assert server.url.startswith("redis://:")
        with connect(server.url) as client:
            assert client.ping()
        bare = "redis://" + server.url.partition("@")[2]
        with connect(bare) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_it_does_not_outlive_the_process_that_started_it(
    how: str, eventually: Callable[..., None]
) -> None:
    code = (
        "import sys; from gptflow.queue.embedded import EmbeddedServer;"
        "print(EmbeddedServer().start().url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        client = connect(url)
        pid = client.info("server")["process_id"]
        client.close()
        os.kill(pid, 0)
        getattr(owner, how)()
    eventually(lambda: not is_alive(pid))
    eventually(lambda: not Path(url.removeprefix("unix://")).parent.exists())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_without_a_server_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"gptflow\[demo\]"):
        find_server()


def test_a_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == program
    with pytest.raises(BrokerUnavailable, match="did not start"):
        EmbeddedServer().start()
