"""What the GPU's steps need of torch, and can be had on a CPU too: it says what they compute."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from gptflow.engine.slots import KVSlots

log = logging.getLogger(__name__)

_MAX_WIDTH = 256
_WIDTH_MULTIPLE = 8
_AMPERE = (8, 0)

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs work on fixed tensors once and returns what runs it again on what they hold then."""


class VarlenAttention(Protocol):
    """Causal attention of rows of several sequences over stretches of a pool."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cum_seq_q: torch.Tensor,
        cum_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size_left: int | None,
        seqused_k: torch.Tensor,
    ) -> torch.Tensor:
        """The last row of a sequence sees all its tokens, the one before it all but the last.

        Args:
            query: `[rows, heads, width]`.
            key, value: the pool, `[tokens, kv heads, width]`.
            cum_seq_q: where the rows of each sequence begin, and the number of all rows;
                `[sequences + 1]`, of 32 bits like the others.
            cum_seq_k: where in the pool each sequence begins, in any order; the last of the
                `[sequences + 1]` numbers means nothing.
            max_q, max_k: at least as many as one sequence has rows, and tokens.
            scale: of the scores; None is one over the root of the width.
            window_size_left: how many tokens before itself a row sees; None is all.
            seqused_k: how many tokens of the pool belong to each sequence, `[sequences]`.

        Returns:
            `[rows, heads, width]`.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Operations:
    """What a `StepRunner` computes with.

    Attributes:
        attend: see `VarlenAttention`.
        recorder: starts a set of recordings of decode steps; None runs them operator by
            operator.
    """

    attend: VarlenAttention
    recorder: Callable[[], Record] | None


def operations(slots: KVSlots) -> Operations | None:
    """The GPU's own for these slots; None if flash attention does not serve them.

    It computes in half precision, for heads of at most 256 numbers, a multiple of 8, on Ampere
    and newer.
    """
    keys = slots.keys[0]
    width = keys.shape[3]
    if (
        keys.device.type != "cuda"
        or keys.dtype not in (torch.float16, torch.bfloat16)
        or width > _MAX_WIDTH
        or width % _WIDTH_MULTIPLE != 0
        or torch.cuda.get_device_capability(keys.device) < _AMPERE
    ):
        return None
    if not works(flash_attention, keys):
        log.warning("flash attention over slots does not work here: torch's own is used")
        return None
    return Operations(flash_attention, cuda_graphs)


def works(attend: VarlenAttention, like: torch.Tensor) -> bool:
    """Whether it reads sequences where they lie: here the later one before the other.

    Args:
        like: a tensor of the type and width to try, `[.., width]`.
    """
    options: Any = {"dtype": torch.int32, "device": like.device}
    pool = torch.arange(4, dtype=like.dtype, device=like.device)[:, None, None]
    pool = pool.expand(4, 1, like.shape[-1]).contiguous()
    try:
        seen = attend(
            torch.ones_like(pool[:2]),
            pool,
            pool,
            torch.arange(3, **options),
            torch.tensor([2, 1, 0], **options),
            1,
            4,
            scale=None,
            window_size_left=None,
            seqused_k=torch.ones(2, **options),
        )
    except RuntimeError as error:
        log.debug("flash attention: %s", error)
        return False
    return bool((seen == pool[[2, 1]]).all())


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size_left: int | None,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """`VarlenAttention` by torch's FlashAttention-2.

    The operator that `torch.nn.attention.varlen.varlen_attn` calls: the function itself knows
    `seqused_k` only since torch 2.13. With it the kernels take a sequence's length from there,
    and from `cum_seq_k` only where it begins.
    """
    result: Any = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cum_seq_q,
        cum_seq_k,
        max_q,
        max_k,
        0.0,  # dropout
        True,  # causal
        False,  # no debug mask
        scale=scale,
        window_size_left=window_size_left,
        seqused_k=seqused_k,
    )
    attended: torch.Tensor = result[0]
    return attended


def cuda_graphs() -> Record:
    """Records CUDA graphs, which share one pool of memory: no two run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        work()  # libraries choose kernels and take memory at the first call, not in a recording
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay

    return record
