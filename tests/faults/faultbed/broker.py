"""Broker: a Valkey on a TCP port that can be killed, frozen and restarted on its data."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import redis

from faultbed.waiting import wait_until
from gptflow.queue.embedded import find_server


class Broker:
    """A server with an append-only file, written every second.

    Args:
        folder: of its data.
        options: of its command line, besides these.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, decode_responses=True, socket_timeout=5)
        self._command = [
            str(find_server()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--logfile", str(folder / "valkey.log")),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it has read its data."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        wait_until(self._answers, 30, what="the server's answer")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (redis.RedisError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.client.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
