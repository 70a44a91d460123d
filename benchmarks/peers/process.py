"""An engine's process, from the outside: started, asked, stopped and continued."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.roster import Entrant
from gptflow.engine.bench import Item

ROOT = Path(__file__).parents[2]

_LAST_WORDS = 10
"""Seconds that a process gets to end by itself once it has closed its output."""


class PeerFailed(Exception):
    """A process ended, or took too long. The message says where its log is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One workload's time, and the first token of each answer."""

    seconds: float
    first: tuple[int, ...]


class PeerProcess:
    """Loads the model at once; between two measurements the whole process group is stopped.

    Args:
        limit: seconds that loading or one measurement may take.
        log: where everything goes that the engine prints.

    Raises:
        PeerFailed: it did not load.
    """

    def __init__(
        self, entrant: Entrant, *, folder: Path, model: Path, threads: int, log: Path, limit: float
    ) -> None:
        peer = entrant.peer
        python = peer.environment.python(folder) if peer.environment else Path(sys.executable)
        files = entrant.model(folder, model)
        for needed in (python, files):
            if not needed.exists():
                raise PeerFailed(
                    f"{needed} is missing: python -m benchmarks.peers setup {peer.name}"
                )
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            # First on its PATH: vLLM and OpenVINO look for their environment's tools there.
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            **dict(peer.variables),
        }
        command = [str(python), "-m", f"benchmarks.peers.{peer.name}"]
        command += [str(files), entrant.precision, str(threads)]
        self._name, self._log, self._limit = entrant.title, log, limit
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self.ready = self._read()
        """`version`, `settings` and `load_seconds`."""
        self._signal(signal.SIGSTOP)

    def measure(self, items: Sequence[Item], warm: Sequence[Item]) -> Measured:
        """Continue, run `warm` untimed and `items` timed, and stop again.

        Raises:
            PeerFailed: there is no answer.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            print(json.dumps({**_work(items), "warm": _work(warm)}), file=self._process.stdin)
            self._process.stdin.flush()
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return Measured(answer["seconds"], tuple(answer["first"]))

    def close(self) -> None:
        """End the whole process group."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(self._limit, self._signal, [signal.SIGKILL])
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_WORDS)
            self.close()
            code = self._process.returncode
            raise PeerFailed(f"{self._name} ended with code {code}; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        # The group, which `start_new_session` made: vLLM runs its model in a child.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _work(items: Sequence[Item]) -> dict[str, Any]:
    return {"prompts": [item["ids"] for item in items], "new": [item["new"] for item in items]}
