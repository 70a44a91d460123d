"""Processes: those that train one run together, each on its share of every batch.

Each computes the gradient of its share, divided by the weight of the whole batch; the sum over all
is the gradient that one process would have computed. Weights begin equal and change alike. Only
the first process writes. `--processes` or `accelerate launch` starts them; a process that nothing
launched is the only one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)
"""For which the others wait while the first one evaluates."""


class Processes:
    """The processes of this run, seen from one of them.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @classmethod
    def launched(cls, device: str = "auto") -> Processes:
        """Those that this process was launched with; each has a device of its own, if any."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState

        cpu = device == "cpu" or not torch.cuda.is_available()
        state = PartialState(cpu=cpu, timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch."""
        return items[self.rank :: self.count]

    @torch.no_grad()
    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return flag
        total = torch.tensor(float(flag), device=device)
        self.add([total])
        return bool(total > 0)

    @torch.no_grad()
    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give each tensor the first process's values."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.data, 0)

    def tell(self, value: T | None) -> T:
        """What the first process says, in all."""
        said: list[Any] = [value]
        if self.count > 1:
            distributed.broadcast_object_list(said, 0)
        found: T = said[0]
        return found

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier()

    def part(self) -> None:
        """End what they have together; one that ended without would be taken for a crash."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def launch_command(count: int, arguments: Sequence[str]) -> list[str]:
    """What starts so many processes on this machine: a module's or a script's, with arguments."""
    # As `accelerate launch` does with GPUs; on CPUs that would need MPI.
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [sys.executable, "-m", *launcher, *arguments]
