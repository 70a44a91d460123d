"""The runner: chunks of many sequences through the model as one packed row of tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Rows

import torch

from gptflow.engine import attention, cuda
from gptflow.engine.attention import Attention, Pack
from gptflow.engine.copies import upload
from gptflow.engine.cuda import Operations, StepRunner
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import rows_by_adapter
from gptflow.engine.native.library import Library
from gptflow.engine.native.logits import compiled_summary
from gptflow.engine.native.step import Part, Step, caches_of
from gptflow.engine.sequence import Chunk
from gptflow.engine.slots import KVSlots
from gptflow.engine.summary import Summary, summarize
from gptflow.engine.views import View, Views

_LOGIT_BYTES = 64 << 20
"""Logits to hold at a time where only single ones of them are wanted."""


class Runner:
    """Runs an unmodified causal language model over slots.

    Args:
        model: in evaluation mode; its attention is replaced by `gptflow.engine.attention`.
        vocabulary: how many tokens exist. Output rows beyond them, which some models have
            for alignment, are cut off.
        library: the compiled kernels, to run attention on them.
        lora: the adapters at work, where the model serves any.
        operations: to compute all attention of a step in one call; by default the GPU's own,
            where it has them for these slots.

    Attributes:
        windows: the sliding windows that the model's layers have asked for so far.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        slots: KVSlots,
        vocabulary: int,
        library: Library | None = None,
        lora: LoRABank | None = None,
        operations: Operations | None = None,
    ) -> None:
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self._decoder: torch.nn.Module = model.get_decoder()  # type: ignore[operator]
        self._lm_head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._vocabulary = vocabulary
        self._slots = slots
        self._lora = lora
        self._device = next(model.parameters()).device
        self._views = Views(self._device, next(model.parameters()).dtype)
        self._library = library
        self._caches = [] if library is None else caches_of(slots)
        self.windows: set[int] = set()
        self._packed: StepRunner | None = None
        operations = operations or cuda.operations(slots)
        if operations is not None:
            self._packed = StepRunner(
                self._decode, slots, operations, lora, self._views, self.windows
            )

    def prepare(self) -> None:
        """Do now what would make the first steps slow."""
        if self._packed is not None:
            self._packed.prepare()

    def forward(self, chunks: Rows[Chunk]) -> torch.Tensor:
        """The final hidden states of all chunks' rows, `[rows, width]`, in their order.

        Chunks that decode come first. The slots hold the rows' keys and values afterwards.
        """
        if self._packed is not None:
            return self._packed.forward(chunks)
        tokens: list[int] = []
        positions: list[int] = []
        for chunk in chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.stop]
            positions += chunk.sequence.positions(chunk.start, chunk.stop)
        if self._lora is not None:
            self._lora.begin(
                rows_by_adapter([(len(chunk), chunk.sequence.lora) for chunk in chunks])
            )
        ids, places = self._tensor([tokens]), self._tensor([positions])
        if self._library is None:
            return self._decode(ids, places, self._pack(chunks))
        step = self._step(self._library, chunks)
        hidden = self._decode(ids, places, step)
        self.windows |= step.windows
        return hidden

    def logits(self, hidden: torch.Tensor, rows: Rows[int] | None = None) -> torch.Tensor:
        """Rows of hidden states `[rows, width]` to logits `[rows, vocabulary]` in float32.

        Args:
            rows: which ones; by default all.
        """
        if rows is not None:
            hidden = hidden.index_select(0, self._tensor(rows))
        logits: torch.Tensor = self._lm_head(hidden)[:, : self._vocabulary]
        return logits.float()

    def summarize(self, logits: torch.Tensor) -> Summary:
        """What is read off every row of logits, `[rows, vocabulary]`."""
        if self._library is None:
            return summarize(logits)
        return compiled_summary(self._library, logits)

    def logprobs(self, hidden: torch.Tensor, wanted: Rows[tuple[int, int]]) -> list[float]:
        """Log-probabilities of given tokens.

        Args:
            hidden: of the whole step, `[rows, width]`.
            wanted: rows of the step, ascending, each with a token to follow it.
        """
        rows = sorted({row for row, _ in wanted})
        found: list[torch.Tensor] = []
        size = max(_LOGIT_BYTES // (4 * self._vocabulary), 1)
        for at in range(0, len(rows), size):
            block = {row: i for i, row in enumerate(rows[at : at + size])}
            logits = self.logits(hidden, list(block))
            picked = self._tensor([(block[row], token) for row, token in wanted if row in block])
            values = logits[picked[:, 0], picked[:, 1]]
            values -= self.summarize(logits).normalizers[picked[:, 0]]
            found.append(values)
        return list(torch.cat(found).tolist())

    def _pack(self, chunks: Rows[Chunk]) -> Pack:
        longest = max(chunk.stop for chunk in chunks)

        # Not a cached function that calls itself: a cycle would keep the step's sequences alive.
        views: dict[int | None, View] = {}

        def view(window: int | None) -> View:
            if window is not None:
                self.windows.add(window)
                if window >= longest:  # it reaches everything
                    window = None
            if window not in views:
                views[window] = self._views.view(chunks, window)
            return views[window]

        places = self._slots.places(
            [chunk.slot for chunk in chunks for _ in range(len(chunk))],
            [index for chunk in chunks for index in range(chunk.start, chunk.stop)],
        )
        return Pack(self._slots, places, view)

    def _step(self, library: Library, chunks: Rows[Chunk]) -> Step:
        parts = []
        row = 0
        for chunk in chunks:
            mask = None
            if chunk.branches_off:
                mask = functools.partial(self._views.mask, chunk)
            parts.append(Part(row, len(chunk), chunk.slot, chunk.start, mask))
            row += len(chunk)
        return Step(
            library,
            self._caches,
            parts,
            adapted=self._lora is not None and self._lora.rows is not None,
        )

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, pack: Attention) -> torch.Tensor:
        output = self._decoder(input_ids=ids, position_ids=positions, use_cache=False, pack=pack)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _tensor(self, values: object) -> torch.Tensor:
        return upload(values, self._device)
