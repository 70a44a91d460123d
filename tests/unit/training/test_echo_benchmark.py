"""The benchmark of reading a text once and twice runs through, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import echo_tagging
from gptflow.training.backbone import Backbone
from gptflow.training.settings import TrainingSettings


@pytest.fixture
def arguments(tiny: SimpleNamespace, tmp_path: Path) -> list[str]:
    sentences = [
        [(name, "B-name"), ("lives", "O"), ("in", "O"), (place, "B-place")]
        for name in ("Ada", "Bob", "Eve", "Max")
        for place in ("Paris", "Oslo", "Rome", "Lima")
    ]
    for part, chosen in (("train", sentences), ("test", sentences[::5])):
        lines = ["\n".join(f"{word} {tag}" for word, tag in sentence) for sentence in chosen]
        (tmp_path / f"{part}.conll").write_text("\n\n".join(lines) + "\n")
    return [
        *(f"--{part}={tmp_path / part}.conll" for part in ("train", "test")),
        f"--out={tmp_path / 'out'}", f"--model={tiny.model().path}", "--epochs=1", "--rank=2",
        "--layers=all",
    ]  # fmt: skip


def test_both_arms_are_measured_once(arguments: list[str], tmp_path: Path) -> None:
    first = CliRunner().invoke(echo_tagging.main, [*arguments, "--gate=-100"])
    assert first.exit_code == 0, first.output
    assert "twice: step" in first.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    once, twice = found["arms"]["once"], found["arms"]["twice"]
    assert twice["tokens"] > 1.5 * once["tokens"]
    assert found["gain"] == pytest.approx(100 * (twice["entity_f1"] - once["entity_f1"]))
    again = CliRunner().invoke(echo_tagging.main, [*arguments, "--gate=101"])
    assert again.exit_code == 1
    assert "step" not in again.output  # both arms are done


def test_the_mask_is_taken_away(arguments: list[str], tmp_path: Path) -> None:
    told = CliRunner().invoke(echo_tagging.main, [*arguments, "--unmasked", "--gate=-100"])
    assert told.exit_code == 0, told.output
    arms = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert arms["unmasked"]["tokens"] < 1.5 * arms["once"]["tokens"]  # it reads them once
    assert "entity_f1" not in arms["unmasked"]


@pytest.mark.parametrize("layers", ["all", "upper"])
def test_unmasked_each_token_sees_what_follows_it(tiny: SimpleNamespace, layers: str) -> None:
    settings = TrainingSettings.of(layers=layers, device="cpu")
    texts = [(5, 6, 7), (5, 6, 7, 8, 9)]
    for kind, alike in ((echo_tagging._Unmasked, False), (Backbone, True)):
        backbone = kind.load(tiny.model().path, settings, model_id="tiny")

        def read(*texts: tuple[int, ...], backbone: Backbone = backbone) -> torch.Tensor:
            return backbone.hidden(texts, backbone.lower(texts) if backbone.first else None)

        short, long = read(*texts)
        assert torch.allclose(short[:3], long[:3], atol=1e-5) is alike
        # Those beside it in the batch change nothing.
        torch.testing.assert_close(short[:3], read(texts[0])[0], atol=1e-5, rtol=1e-4)
