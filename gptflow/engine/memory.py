"""How much memory the engine may fill, settled before it takes the first request."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch

from gptflow.engine.slots import KVSlots
from gptflow.errors import ConfigError

log = logging.getLogger(__name__)

_MARGIN = 0.1
"""Share of what is available that is left to everything else."""

_SCORED_BYTES = 64 << 20
"""Logits that scoring holds at a time, as `Runner`."""

_UNLIMITED = 1 << 60
"""Control groups of the first version write a huge number where there is no limit."""


def settle(
    config: Any,
    *,
    slots: int,
    beside: int | None = None,
    length: int,
    like: torch.Tensor,
    dtype: torch.dtype | None,
    asked: int | None,
    kept: int,
    rows: int,
    token_major: bool | None = None,
) -> KVSlots:
    """Slots for a model that is loaded already, with a budget that the machine can fill.

    Args:
        beside: slots for sequences that only read a prompt; by default as many again where
            they cost address space alone, and a quarter where they cost memory.
        like: a weight of the model.
        dtype: of keys and values; by default the weight's.
        asked: bytes that they may take at most; None for what is available.
        kept: bytes that the engine may keep besides, such as prefixes.
        rows: most tokens of one step.
        token_major: the layout, see `KVSlots`.

    Raises:
        ConfigError: there is not enough memory.
    """
    token_bytes = KVSlots.token_bytes(config, dtype or like.dtype)
    lazy = KVSlots.lazy(like.device)
    if beside is None:
        beside = slots if lazy else max(slots // 4, 1)
    budget = kv_budget(
        slots=slots + beside,
        slot_tokens=length,
        token_bytes=token_bytes,
        other_bytes=kept + step_bytes(config, rows=rows, drawing=slots),
        asked=asked,
        available=available(like.device),
        lazy=lazy,
    )
    log.info(
        "key-value cache: %d slots and %d for prompts alone, of %d tokens, %s at most",
        slots,
        beside,
        length,
        _mib(budget * token_bytes),
    )
    return KVSlots.for_model(
        config,
        slots=slots,
        length=length,
        like=like,
        dtype=dtype,
        budget=budget,
        token_major=token_major,
        beside=beside,
    )


def available(
    device: torch.device, *, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process could still take; None where the system does not tell.

    On a GPU they are its free memory. On Linux they are what the machine has available or,
    if that is less, what the process's control groups leave it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min([free, *_group_room(proc, groups)])


def step_bytes(config: Any, *, rows: int, drawing: int) -> int:
    """About what one step takes for activations and logits, all in float32.

    Args:
        rows: most tokens of a step.
        drawing: most sequences that draw a token in it.
    """
    hidden: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    # The residual, its norm, query, key and value; gate, up and their product.
    activations = rows * (8 * hidden + 3 * inner)
    # Both work on the logits, a copy and their sorted or shaped form.
    logits: int = 3 * max(4 * drawing * config.vocab_size, _SCORED_BYTES)
    return 4 * activations + logits


def kv_budget(
    *,
    slots: int,
    slot_tokens: int,
    token_bytes: int,
    other_bytes: int,
    asked: int | None,
    available: int | None,
    lazy: bool,
) -> int:
    """How many tokens the key-value cache may hold at the same time.

    Args:
        token_bytes: of one token's keys and values.
        other_bytes: what the engine needs besides: prefix cache, logits, activations.
        asked: bytes to use at most; None uses what is available.
        available: see `available`.
        lazy: the cache takes memory only as it is written, so that it may be laid out
            larger than the budget.

    Raises:
        ConfigError: the machine has too little, or `asked` is too little for one sequence.
    """
    whole = slots * slot_tokens * token_bytes
    wanted = whole if asked is None else min(asked, whole)
    if wanted < slot_tokens * token_bytes:
        raise ConfigError(
            f"A cache of {_mib(wanted)} does not hold one sequence of {slot_tokens} tokens, "
            f"which takes {_mib(slot_tokens * token_bytes)}.",
            hint="Raise kv_bytes or lower slot_tokens.",
        )
    if available is None:
        return wanted // token_bytes
    room = int(available * (1 - _MARGIN)) - other_bytes
    # Unless told otherwise the cache makes do with less, so long as every request fits.
    least = wanted if asked is not None or not lazy else slot_tokens * token_bytes
    if room < least:
        setting = "kv_bytes" if asked is not None else "slot_tokens" if lazy else "slots"
        raise ConfigError(
            f"The key-value cache needs {_mib(least)} ({slots} slots of {slot_tokens} tokens, "
            f"{token_bytes} bytes a token) and the rest of the engine {_mib(other_bytes)}, "
            f"but of the {_mib(available)} available {_mib(max(room, 0))} are left for it.",
            hint=f"Lower {setting} (GPTFLOW_{setting.upper()}).",
        )
    return min(wanted, room) // token_bytes


def _group_room(proc: Path, groups: Path) -> list[int]:
    """What the limits of the process's control groups, and of those above them, leave."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    room: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit = groups / "memory", "memory.limit_in_bytes"
            usage, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path may be the host's, and only the root is there.
        for group in {root, folder, *(p for p in folder.parents if root in p.parents)}:
            with contextlib.suppress(OSError, ValueError):  # no limit here: "max", or no file
                most = int((group / limit).read_text())
                if most < _UNLIMITED:
                    used = int((group / usage).read_text())
                    room.append(max(most - used + _cached(group, cache), 0))
    return room


def _cached(group: Path, name: str) -> int:
    """Bytes of files that the system drops first when memory runs short."""
    for line in (group / "memory.stat").read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
