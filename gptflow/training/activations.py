"""Activations: what the frozen lower half of a model gives for each text, computed once.

They lie in one file of float32 numbers beside the run, `tokens x width x 4` bytes, and are read as
they are needed. A file that was not finished is begun again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gptflow.errors import TrainingError
from gptflow.training.backbone import Backbone
from gptflow.training.example import Text

_PASS = 4096
"""Tokens in one forward pass."""


class Activations:
    """The lower half's output for texts, by their token ids.

    Args:
        folder: of the run.

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
        self._places: dict[tuple[int, ...], int] = {}
        rows = 0
        for text in texts:
            if text.ids not in self._places:
                self._places[text.ids] = rows
                rows += len(text)
        path = folder / "lower.f32"
        shape = (rows, backbone.width)
        digest = hashlib.sha256(repr((key, shape, list(self._places))).encode()).hexdigest()
        note = folder / "lower.json"
        done = None
        with contextlib.suppress(OSError, ValueError):
            done = json.loads(note.read_text(encoding="utf-8"))["digest"]
        if done != digest or not path.is_file() or path.stat().st_size != 4 * rows * shape[1]:
            note.unlink(missing_ok=True)
            try:
                self._compute(backbone, path, shape, progress)
                note.write_text(json.dumps({"digest": digest}), encoding="utf-8")
            except OSError as error:
                path.unlink(missing_ok=True)
                raise TrainingError(
                    f"The activations of {rows} tokens take {4 * rows * shape[1] >> 20} MiB: "
                    f"{error.strerror or error}.",
                    hint="Make room, or train all layers: `--layers all`.",
                ) from None
        self._states = np.memmap(path, np.float32, "r", shape=shape)

    def __contains__(self, text: Text) -> bool:
        """Whether they were computed for this text."""
        return text.ids in self._places

    def __getitem__(self, text: Text) -> torch.Tensor:
        """`[tokens, width]`."""
        place = self._places[text.ids]
        return torch.from_numpy(np.array(self._states[place : place + len(text)]))

    def _compute(
        self,
        backbone: Backbone,
        path: Path,
        shape: tuple[int, int],
        progress: Callable[[int, int], None],
    ) -> None:
        with path.open("wb") as file:  # a map of a file with holes dies of a full disk
            block = np.zeros((1 << 20) // 4, np.float32).tobytes()
            left = 4 * shape[0] * shape[1]
            while left:
                left -= file.write(block[: min(left, len(block))])
        states = np.memmap(path, np.float32, "r+", shape=shape)
        order = sorted(self._places, key=len)
        part: list[tuple[int, ...]] = []
        done = 0
        for ids in (*order, None):
            if part and (ids is None or (len(part) + 1) * len(ids) > _PASS):
                for known, found in zip(part, backbone.lower(part), strict=True):
                    place = self._places[known]
                    states[place : place + len(known)] = found.numpy()
                    done += len(known)
                progress(done, shape[0])
                part = []
            if ids is not None:
                part.append(ids)
        states.flush()
