"""The runner: chunks of many sequences through the model as one packed row of tokens."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from gptflow.engine import attention
from gptflow.engine.attention import Decode, Pack, Span
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
    """

    def __init__(self, model: torch.nn.Module, slots: KVSlots, vocabulary: int) -> None:
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self._decoder: torch.nn.Module = model.get_decoder()  # type: ignore[operator]
        self._lm_head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._vocabulary = vocabulary
        self._slots = slots
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype

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
        # A lone row of a prompt may come after longer chunks; it is a span like them.
        count = next((i for i, chunk in enumerate(chunks) if not chunk.is_decode), len(chunks))
        spans = []
        at = count
        for chunk in chunks[count:]:
            end = at + len(chunk)
            spans.append(Span(at, end, _slot(chunk.sequence), chunk.stop, self._mask(chunk)))
            at = end
        return Pack(
            keys=self._slots.keys,
            values=self._slots.values,
            places=self._slots.places(
                [_slot(chunk.sequence) for chunk in chunks for _ in range(len(chunk))],
                [index for chunk in chunks for index in range(chunk.start, chunk.stop)],
            ),
            decode=self._block(chunks[:count]) if count else None,
            spans=tuple(spans),
        )

    def _block(self, chunks: Rows[Chunk]) -> Decode:
        """The block of slots that the decoding rows attend over together."""
        slots = [_slot(chunk.sequence) for chunk in chunks]
        lengths = [chunk.stop for chunk in chunks]
        low, size = min(slots), max(slots) - min(slots) + 1
        block: slice | torch.Tensor = slice(low, low + size)
        place: torch.Tensor | None = None
        sizes = lengths
        if size > 2 * len(slots):  # mostly holes: copying is cheaper than attending to them
            block, size = self._tensor(slots), len(slots)
        elif slots != list(range(low, low + size)):
            place = self._tensor([slot - low for slot in slots])
            sizes = [1] * size  # a hole sees something, so that its softmax is a number
            for slot, length in zip(slots, lengths, strict=True):
                sizes[slot - low] = length
        visible = torch.arange(max(lengths), device=self._device) < self._tensor(sizes)[:, None]
        return Decode(
            rows=len(slots),
            slots=block,
            place=place,
            size=size,
            length=max(lengths),
            mask=self._additive(visible)[:, None, None],
        )

    def _mask(self, chunk: Chunk) -> torch.Tensor | None:
        """What each row of a chunk sees of its sequence, `[rows, length]`."""
        branches = chunk.sequence.branches
        if branches is None or chunk.stop <= chunk.sequence.trunk:
            if chunk.start == 0:
                return None
            branches = [0] * chunk.stop
        branch = self._tensor(branches[: chunk.stop])
        index = torch.arange(chunk.stop, device=self._device)
        visible = index <= index[chunk.start :, None]
        visible &= (branch == 0) | (branch == branch[chunk.start :, None])
        return self._additive(visible)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~visible, -torch.inf)

    def _tensor(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None, "only sequences with a slot are run"
    return sequence.slot
