"""Notes: what the workers' tasks write down themselves, whatever the ledger says of them."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """`start`, `end` or `stop` of a run of a job, in a process, at a Unix time."""

    kind: str
    job_id: str
    pid: int
    time: float


class Notes:
    """The file that the plugin `faults` writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def read(self) -> list[Note]:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        parts = [line.split() for line in lines]
        return [Note(kind, job, int(pid), float(at)) for kind, job, pid, at in parts]

    def runs(self) -> dict[str, list[Note]]:
        """The starts of each job, in order."""
        found: dict[str, list[Note]] = collections.defaultdict(list)
        for note in self.read():
            if note.kind == "start":
                found[note.job_id].append(note)
        return found

    def rerun_after_end(self) -> set[str]:
        """The jobs that started in one process after they had ended in another."""
        ended: dict[str, int] = {}
        again = set()
        for note in self.read():
            if note.kind == "end":
                ended[note.job_id] = note.pid
            elif note.kind == "start" and note.job_id in ended:
                again.add(note.job_id)
        return again
