"""Activations of frozen layers, kept on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptflow.errors import TrainingError
from gptflow.training import activations
from gptflow.training.activations import Activations
from gptflow.training.backbone import Backbone
from gptflow.training.example import Text
from gptflow.training.settings import TrainingSettings

TEXTS = [Text(tuple(range(5, 5 + length))) for length in (3, 9, 4, 3, 7, 5)]


@pytest.fixture
def backbone(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(activations, "_PASS", 8)
    monkeypatch.setattr(activations, "_NOTED", 1)
    made = Backbone.load(tiny.model().path, TrainingSettings(layers="upper"), model_id="tiny")
    made.passes = []
    lower = made.lower

    def counted(texts: Any) -> Any:
        made.passes.append(len(texts))
        return lower(texts)

    monkeypatch.setattr(made, "lower", counted)
    return made


def test_each_text_is_computed_once_and_read_as_it_was(backbone: Any, tmp_path: Path) -> None:
    kept = Activations(backbone, TEXTS, tmp_path, key="a")
    assert sum(backbone.passes) == 5  # two texts are the same
    for text in TEXTS:
        torch.testing.assert_close(kept[text], Backbone.lower(backbone, [text.ids])[0])


def test_what_was_interrupted_goes_on_where_it_was(backbone: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Activations(backbone, TEXTS, tmp_path, key="a", progress=stop)
    before = sum(backbone.passes)
    seen: list[tuple[int, int]] = []
    kept = Activations(backbone, TEXTS, tmp_path, key="a", progress=lambda *each: seen.append(each))
    assert 0 < before < 5
    assert sum(backbone.passes) == 5
    assert seen[0][0] > 6
    assert seen[-1] == (28, 28)
    for text in TEXTS:
        torch.testing.assert_close(kept[text], Backbone.lower(backbone, [text.ids])[0])


def test_those_of_another_model_or_other_texts_are_not_taken(backbone: Any, tmp_path: Path) -> None:
    Activations(backbone, TEXTS, tmp_path, key="a")
    backbone.passes.clear()
    Activations(backbone, TEXTS, tmp_path, key="b")
    assert sum(backbone.passes) == 5
    Activations(backbone, TEXTS[1:], tmp_path, key="b")
    assert sum(backbone.passes) == 10


def test_a_full_disk_is_told_with_the_way_round_it(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Activations) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Activations, "_make_room", full)
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        Activations(backbone, TEXTS, tmp_path, key="a")
    assert "--layers all" in str(caught.value.hint)
    assert not (tmp_path / activations.STATES).exists()
