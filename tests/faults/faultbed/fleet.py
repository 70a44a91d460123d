"""Fleet: worker processes to kill, freeze and restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from faultbed.waiting import wait_until
from gptflow.config import Settings
from gptflow.queue.transport import RedisTransport

READY_SECONDS = 120
STOP_SECONDS = 90

_KEPT = frozenset({"GPTFLOW_CACHE_DIR"})  # where the real model is


class Process:
    """A process with its log in a file."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: _state(self.pid) == "T", what="the stop", every=0.001)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def terminate(self, seconds: float = 60) -> int:
        """TERM, and its exit code. Where none comes, the test fails with what its threads do."""
        self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.abort()
        raise AssertionError(f"It did not end in {seconds:g} s after TERM:\n{self.output}")

    def abort(self) -> None:
        """End it, with the stacks of all its threads in its log."""
        self.send(signal.SIGABRT)  # PYTHONFAULTHANDLER is set
        try:
            self.popen.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()


class Fleet:
    """Workers of one application.

    Args:
        environment: of each, besides its settings.
        folder: for their logs.
        given: their settings by name.
    """

    def __init__(
        self, settings: Settings, environment: dict[str, str], folder: Path, **given: Any
    ) -> None:
        self.workers: list[Process] = []
        self.deaths = 0
        self.killed = False
        self._environment = environment
        self._folder = folder
        self._given = given
        self._transport = RedisTransport(settings)
        self._kept: threading.Thread | None = None
        self._stopping = threading.Event()

    def launch(self, module: str = "gptflow_workers.cpu", **given: Any) -> Process:
        """Start a process; it is not ready yet."""
        settings = self._given | given
        environment = self._environment | {
            f"GPTFLOW_{name.upper()}": str(value) for name, value in settings.items()
        }
        log = self._folder / f"{module}-{len(list(self._folder.iterdir()))}.log"
        return Process([sys.executable, "-m", module], environment, log)

    def start(self, count: int = 1, **given: Any) -> list[Process]:
        """Start workers and wait until they are ready."""
        fresh = [self.launch(**given) for _ in range(count)]
        self.workers += fresh
        for worker in fresh:
            self.wait_ready(worker)
        return fresh

    def wait_ready(self, worker: Process) -> None:
        def ready() -> bool:
            assert worker.alive, worker.output
            return worker.pid in {record.pid for record in self._transport.workers()}

        wait_until(ready, READY_SECONDS, what="a ready worker", every=0.05)

    def kill(self, worker: Process) -> None:
        """SIGKILL."""
        self.killed = True
        worker.kill()

    def replace(self, worker: Process, **given: Any) -> Process:
        """Start another worker in a worker's place; it is not ready yet."""
        fresh = self.launch(**given)
        self.workers[self.workers.index(worker)] = fresh
        return fresh

    def supervise(self) -> None:
        """Start another worker for each one that dies, as a service manager does."""
        self._kept = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._kept.start()

    def _keep(self) -> None:
        while not self._stopping.wait(0.05):
            for worker in tuple(self.workers):
                if not worker.alive:
                    self.killed |= worker.popen.returncode < 0
                    self.deaths += 1
                    self.replace(worker)

    def stop_supervising(self) -> None:
        self._stopping.set()
        if self._kept is not None:
            self._kept.join()

    def stop(self) -> None:
        """TERM to all at once, and wait; what does not end fails the test."""
        self.stop_supervising()
        living = [worker for worker in self.workers if worker.alive]
        for worker in living:
            worker.thaw()
            worker.popen.terminate()
        until = time.monotonic() + STOP_SECONDS
        stuck = []
        for worker in living:
            try:
                worker.popen.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.abort()
                stuck.append(worker.output)
        self.workers.clear()
        assert not stuck, "A worker did not end after TERM:\n" + "\n\n".join(stuck)

    def close(self) -> None:
        self.stop_supervising()
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        self._transport.close()


def environment(plugin: Path, notes: Path) -> dict[str, str]:
    """What processes of this run need to find GPTFlow as it is here, and the plugin."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPTFLOW_") or k in _KEPT}
    paths = [str(plugin), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONFAULTHANDLER": "1",
        "FAULTS_NOTES": str(notes),
    }


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:  # where there is no /proc, the signal has to do
        return "T"
    return text.rpartition(")")[2].split()[0]
