"""Activations: what the frozen lower half of a model gives for each text, computed once.

They lie in one file of float32 numbers beside the run, `tokens x width x 4` bytes, and are read as
they are needed. A note beside it says how far it is done, so that a run that is killed goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from gptflow.errors import TrainingError
from gptflow.training.backbone import Backbone
from gptflow.training.example import Text

STATES = "lower.f32"
NOTE = "lower.json"

_PASS = 4096
"""Tokens in one forward pass."""

_NOTED = 8
"""Passes between two notes."""

Ids = tuple[int, ...]


class Activations:
    """The lower half's output for texts, by their token ids.

    Args:
        folder: of the run.
        key: of the model; what was computed by another is not taken.
        progress: told how many tokens are done, and of how many.

    Raises:
        TrainingError: the disk has no room for it.
    """

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[Text],
        folder: Path,
        *,
        key: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._places: dict[Ids, int] = {}
        rows = 0
        for text in texts:
            if text.ids not in self._places:
                self._places[text.ids] = rows
                rows += len(text)
        self._path, self._note = folder / STATES, folder / NOTE
        self._shape = (rows, backbone.width)
        self._digest = hashlib.sha256(
            repr((key, self._shape, list(self._places))).encode()
        ).hexdigest()
        try:
            self._compute(backbone, progress)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise TrainingError(
                f"The activations of {rows} tokens take {self._size >> 20} MiB: "
                f"{error.strerror or error}.",
                hint="Make room, or train all layers: `--layers all`.",
            ) from None
        self._states = np.memmap(self._path, np.float32, "r", shape=self._shape)

    def __contains__(self, text: Text) -> bool:
        """Whether they were computed for this text."""
        return text.ids in self._places

    def __getitem__(self, text: Text) -> torch.Tensor:
        """`[tokens, width]`."""
        place = self._places[text.ids]
        return torch.from_numpy(np.array(self._states[place : place + len(text)]))

    @property
    def _size(self) -> int:
        return 4 * self._shape[0] * self._shape[1]

    def _compute(self, backbone: Backbone, progress: Callable[[int, int], None]) -> None:
        order = sorted(self._places, key=len)
        done = self._texts_done()
        if not done:
            self._note.unlink(missing_ok=True)
            self._make_room()
        states = np.memmap(self._path, np.float32, "r+", shape=self._shape)
        tokens = sum(map(len, order[:done]))
        for number, part in enumerate(_passes(order[done:]), start=1):
            for known, found in zip(part, backbone.lower(part), strict=True):
                place = self._places[known]
                states[place : place + len(known)] = found.numpy()
            done += len(part)
            tokens += sum(map(len, part))
            if number % _NOTED == 0 or done == len(order):
                states.flush()
                self._write_note(done)
            progress(tokens, self._shape[0])

    def _texts_done(self) -> int:
        """How many texts, the shortest first, an earlier sitting has computed."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["digest"] == self._digest and self._path.stat().st_size == self._size:
                return int(note["texts"])
        return 0

    def _write_note(self, texts: int) -> None:
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps({"digest": self._digest, "texts": texts}), encoding="utf-8")
        partial.replace(self._note)

    def _make_room(self) -> None:
        block = np.zeros((1 << 20) // 4, np.float32).tobytes()
        left = self._size
        with self._path.open("wb") as file:  # a map of a file with holes dies of a full disk
            while left:
                left -= file.write(block[: min(left, len(block))])


def _passes(texts: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Texts that are sorted by length, in parts that fit one forward pass."""
    part: list[Ids] = []
    for ids in texts:
        if part and (len(part) + 1) * len(ids) > _PASS:
            yield part
            part = []
        part.append(ids)
    if part:
        yield part
