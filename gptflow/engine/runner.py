"""The runner: chunks of many sequences through the model as one packed row of tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Rows

import torch

from gptflow.engine import attention
from gptflow.engine.attention import Decode, Pack, Span, View
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots

_LOGIT_ROWS = 128
"""Rows of logits to hold at a time: 128 rows of 150,000 tokens in float32 are 77 MB."""


class Runner:
    """Runs an unmodified causal language model over slots.

    Args:
        model: in evaluation mode; its attention is replaced by `gptflow.engine.attention`.
        vocabulary: how many tokens exist. Output rows beyond them, which some models have
            for alignment, are cut off.

    Attributes:
        windows: the sliding windows that the model's layers have asked for so far.
    """

    def __init__(self, model: torch.nn.Module, slots: KVSlots, vocabulary: int) -> None:
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self._decoder: torch.nn.Module = model.get_decoder()  # type: ignore[operator]
        self._lm_head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._vocabulary = vocabulary
        self._slots = slots
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        self.windows: set[int] = set()

    def forward(self, chunks: Rows[Chunk]) -> torch.Tensor:
        """The final hidden states of all chunks' rows, `[rows, width]`, in their order.

        Chunks that decode come first. The slots hold the rows' keys and values afterwards.
        """
        tokens: list[int] = []
        positions: list[int] = []
        for chunk in chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.stop]
            positions += chunk.sequence.positions(chunk.start, chunk.stop)
        output = self._decoder(
            input_ids=self._tensor([tokens]),
            position_ids=self._tensor([positions]),
            use_cache=False,
            pack=self._pack(chunks),
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of hidden states `[rows, width]` to logits `[rows, vocabulary]` in float32."""
        logits: torch.Tensor = self._lm_head(hidden)[:, : self._vocabulary]
        return logits.float()

    def logprobs(self, hidden: torch.Tensor, wanted: Rows[tuple[int, int]]) -> list[float]:
        """Log-probabilities of given tokens.

        Args:
            hidden: of the whole step, `[rows, width]`.
            wanted: rows of the step, ascending, each with a token to follow it.
        """
        rows = sorted({row for row, _ in wanted})
        found: list[float] = []
        for at in range(0, len(rows), _LOGIT_ROWS):
            block = {row: i for i, row in enumerate(rows[at : at + _LOGIT_ROWS])}
            logits = self.logits(hidden[self._tensor(list(block))])
            picked = self._tensor([(block[row], token) for row, token in wanted if row in block])
            values = logits[picked[:, 0], picked[:, 1]] - logits.logsumexp(-1)[picked[:, 0]]
            found += values.tolist()
        return found

    def _pack(self, chunks: Rows[Chunk]) -> Pack:
        longest = max(chunk.stop for chunk in chunks)

        @functools.cache
        def view(window: int | None) -> View:
            if window is not None:
                self.windows.add(window)
                if window >= longest:  # it reaches everything
                    return view(None)
            return self._view(chunks, window)

        return Pack(
            keys=self._slots.keys,
            values=self._slots.values,
            places=self._slots.places(
                [_slot(chunk.sequence) for chunk in chunks for _ in range(len(chunk))],
                [index for chunk in chunks for index in range(chunk.start, chunk.stop)],
            ),
            view=view,
        )

    def _view(self, chunks: Rows[Chunk], window: int | None) -> View:
        # A lone row of a prompt may come after longer chunks; it is a span like them.
        count = next((i for i, chunk in enumerate(chunks) if not chunk.is_decode), len(chunks))
        spans = []
        at = count
        for chunk in chunks[count:]:
            spans.append(self._span(chunk, at, window))
            at += len(chunk)
        return View(self._block(chunks[:count], window) if count else None, tuple(spans))

    def _block(self, chunks: Rows[Chunk], window: int | None) -> Decode:
        """The block of slots that the decoding rows attend over together."""
        slots = [_slot(chunk.sequence) for chunk in chunks]
        lengths = [chunk.stop for chunk in chunks]
        first = 0 if window is None else max(min(lengths) - window, 0)
        low, size = min(slots), max(slots) - min(slots) + 1
        block: slice | torch.Tensor = slice(low, low + size)
        place: torch.Tensor | None = None
        sizes = lengths
        if size > 2 * len(slots):  # mostly holes: copying is cheaper than attending to them
            block, size = self._tensor(slots), len(slots)
        elif slots != list(range(low, low + size)):
            place = self._tensor([slot - low for slot in slots])
            # A hole sees something, so that its softmax is a number.
            sizes = [first + 1] * size
            for slot, length in zip(slots, lengths, strict=True):
                sizes[slot - low] = length
        index = torch.arange(first, max(lengths), device=self._device)
        seen = self._tensor(sizes)[:, None]
        visible = index < seen
        if window is not None and max(lengths) > window:
            visible &= index >= seen - window
        return Decode(
            rows=len(slots),
            slots=block,
            place=place,
            size=size,
            first=first,
            length=max(lengths),
            mask=self._additive(visible)[:, None, None],
        )

    def _span(self, chunk: Chunk, at: int, window: int | None) -> Span:
        """A chunk whose rows begin at row `at` of the step."""
        sequence, start, stop = chunk.sequence, chunk.start, chunk.stop
        first = 0
        if window is not None:
            first = max(min(sequence.positions(start, stop)) - window + 1, 0)
            if sequence.branches is not None:  # a branch's row is not at its position
                first = min(first, sequence.trunk)
        mask = self._mask(chunk, window)
        if mask is not None:
            mask = mask[:, first:]
        return Span(at, at + len(chunk), _slot(sequence), first, stop, mask)

    def _mask(self, chunk: Chunk, window: int | None) -> torch.Tensor | None:
        """What each row of a chunk sees of its sequence, `[rows, length]`."""
        sequence, start, stop = chunk.sequence, chunk.start, chunk.stop
        branches = sequence.branches
        if branches is None or stop <= sequence.trunk:
            if start == 0 and (window is None or stop <= window):
                return None
            branches = [0] * stop
        branch = self._tensor(branches[:stop])
        index = torch.arange(stop, device=self._device)
        visible = index <= index[start:, None]
        visible &= (branch == 0) | (branch == branch[start:, None])
        if window is not None and stop > window:
            position = self._tensor(list(sequence.positions(0, stop)))
            visible &= position > position[start:, None] - window
        return self._additive(visible)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~visible, -torch.inf)

    def _tensor(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None, "only sequences with a slot are run"
    return sequence.slot
