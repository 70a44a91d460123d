"""What contained code may use."""

from __future__ import annotations

import dataclasses
import math

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings for one contained process.

    Time is counted as processor time, which does not run while a busy machine serves somebody
    else; the wall clock gets four times as much, for code that sleeps or waits.

    Attributes:
        cpu_s: processor seconds, in whole seconds because the kernel counts so.
        memory_bytes: address space.
        file_bytes: size of one file.
        disk_bytes: all files together, when the backend can count them.
        open_files: file descriptors at a time.
    """

    cpu_s: int = 3
    memory_bytes: int = 512 * MIB
    file_bytes: int = 4 * MIB
    disk_bytes: int = 16 * MIB
    open_files: int = 32

    @classmethod
    def for_timeout(cls, seconds: float) -> Limits:
        """The usual ceilings with this time limit, rounded up to whole seconds."""
        return cls(cpu_s=max(1, math.ceil(seconds)))

    @property
    def wall_s(self) -> float:
        """Seconds on the clock after which the run is ended."""
        return 4.0 * self.cpu_s

    def as_dict(self) -> dict[str, int | float]:
        """For the wire and for a task's output."""
        return {**dataclasses.asdict(self), "wall_s": self.wall_s}
