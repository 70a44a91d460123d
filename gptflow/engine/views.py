"""Views: what the rows of a step see of their slots, as torch's own attention wants it told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Rows

import torch

from gptflow.engine.copies import upload
from gptflow.engine.sequence import Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class Decode:
    """The first `rows` rows: one new token for each of as many sequences.

    They attend together over a block of slots: `slots` picks it from the cache, a slice
    where the slots lie close together (no copy), else their numbers.

    Attributes:
        place: each row's place in the block, `[rows]`; None if they are the same.
        size: slots in the block.
        first: the first token that any of them sees.
        length: tokens of the longest sequence.
        mask: `[size, 1, 1, length - first]`, added to the scores.
    """

    rows: int
    slots: slice | torch.Tensor
    place: torch.Tensor | None
    size: int
    first: int
    length: int
    mask: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Rows `start:stop`: several tokens of one sequence, which then has `length`.

    Attributes:
        first: the first token that any of them sees.
        mask: `[stop - start, length - first]`, added to the scores; None for a sequence's
            very first tokens, which only need to be causal.
    """

    start: int
    stop: int
    slot: int
    first: int
    length: int
    mask: torch.Tensor | None


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What the rows of one step see in the layers of one sliding window, or of none."""

    decode: Decode | None
    spans: tuple[Span, ...]


class Views:
    """Makes the views of a step.

    Args:
        dtype: of the masks, which are added to the scores.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def view(self, chunks: Rows[Chunk], window: int | None) -> View:
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
        slots = [chunk.slot for chunk in chunks]
        lengths = [chunk.stop for chunk in chunks]
        first = 0 if window is None else max(min(lengths) - window, 0)
        low, size = min(slots), max(slots) - min(slots) + 1
        block: slice | torch.Tensor = slice(low, low + size)
        place: torch.Tensor | None = None
        sizes = lengths
        if size > 2 * len(slots):  # mostly holes: copying is cheaper than attending to them
            block, size = upload(slots, self._device), len(slots)
        elif slots != list(range(low, low + size)):
            place = upload([slot - low for slot in slots], self._device)
            # A hole sees something, so that its softmax is a number.
            sizes = [first + 1] * size
            for slot, length in zip(slots, lengths, strict=True):
                sizes[slot - low] = length
        index = torch.arange(first, max(lengths))
        seen = torch.tensor(sizes)[:, None]
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
        mask = self.mask(chunk, window)
        if mask is not None:
            mask = mask[:, first:]
        return Span(at, at + len(chunk), chunk.slot, first, stop, mask)

    def mask(self, chunk: Chunk, window: int | None) -> torch.Tensor | None:
        """What each row of a chunk sees of its sequence, `[rows, length]`."""
        sequence, start, stop = chunk.sequence, chunk.start, chunk.stop
        branches = sequence.branches
        if branches is None or stop <= sequence.trunk:
            if start == 0 and (window is None or stop <= window):
                return None
            branches = [stop] * stop
        seen_until = torch.tensor(branches[:stop])
        index = torch.arange(stop)
        visible = index <= index[start:, None]
        visible &= seen_until > index[start:, None]
        if window is not None and stop > window:
            position = torch.tensor(list(sequence.positions(0, stop)))
            visible &= position > position[start:, None] - window
        return self._additive(visible)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self._dtype)
        return upload(mask.masked_fill_(~visible, -torch.inf), self._device)
