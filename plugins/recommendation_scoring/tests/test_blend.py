"""Blends: fitted weights in place of the default ones."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gptflow.errors import InvalidInput
from gptflow.testing import ScriptedEngine, run
from gptflow_recommendation_scoring.blend import Blend
from gptflow_recommendation_scoring.fitting import Shown, divide, fit, measure
from gptflow_recommendation_scoring.task import Rank


def rank(candidates, **options):
    request = {
        "user": {"id": "u"},
        "candidates": candidates,
        "now": "2026-11-20T12:00:00Z",
        "diversity": 0.0,
        **options,
    }
    return run(Rank(), request, engine=ScriptedEngine())


def shown(groups: int = 300) -> list[Shown]:
    """Some people take more than others; all take what is popular, cheap, and stands first."""
    generator = random.Random(1)
    rows = []
    for group in range(groups):
        eager = generator.gauss(0, 1)
        for position in range(8):
            popularity, price = generator.gauss(500, 100), generator.gauss(20, 5)
            odds = eager + (popularity - 500) / 50 - (price - 20) / 5 - position / 2
            rows.append(
                Shown(
                    group=str(group),
                    features={"popularity": popularity, "price": price, "position": position},
                    taken=generator.random() < 1 / (1 + math.exp(-odds)),
                )
            )
    return rows


def test_a_blend_weighs_raw_signals_and_gives_probabilities():
    blend = {"weights": {"popularity": 0.01}, "means": {"popularity": 100}, "bias": -1}
    out = rank(
        [
            {"item_id": "a", "features": {"popularity": 100}},
            {"item_id": "b", "features": {"popularity": 300}},
            {"item_id": "c"},
        ],
        blend=blend,
    )
    items = {item.item_id: item for item in out.items}
    assert out.items[0].item_id == "b"
    assert items["b"].score == 2.0
    assert items["b"].p == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-4)
    assert items["c"].contributions == {"popularity": 0.0}
    assert items["c"].missing == ["popularity"]
    assert rank([{"item_id": "a"}]).items[0].p is None


def test_a_blend_and_weights_exclude_each_other():
    with pytest.raises(InvalidInput, match="exclude"):
        rank([{"item_id": "a"}], blend={"weights": {"x": 1}}, weights={"x": 1})


def test_fitting_finds_what_people_go_by_but_for_the_position():
    fitted, held = divide(shown())
    assert not {row.group for row in fitted} & {row.group for row in held}
    blend = fit(fitted)
    assert blend.weights.keys() == {"popularity", "price"}
    assert blend.weights["popularity"] == pytest.approx(1 / 50, rel=0.35)
    assert blend.weights["price"] == pytest.approx(-1 / 5, rel=0.35)
    figures = measure(blend, held)
    alone = measure(Blend(weights={"popularity": 1.0}), held)
    assert figures.auc > alone.auc + 0.01
    assert figures.ece < 0.1


def test_what_is_not_known_counts_as_the_mean():
    rows = shown(50)
    rows += [Shown(group="x", features={"popularity": None, "price": 20.0}, taken=True)]
    blend = fit(rows)
    assert blend.centred("popularity", None) == 0.0


def test_rows_of_which_none_was_taken_teach_nothing():
    with pytest.raises(ValueError, match="nothing to learn"):
        fit([Shown(group="a", features={"x": 1.0}, taken=False)] * 3)


def test_the_command_writes_a_blend_that_the_task_takes(tmp_path: Path):
    rows = tmp_path / "shown.jsonl"
    rows.write_text("".join(row.model_dump_json() + "\n" for row in shown(60)))
    out = tmp_path / "blend.json"
    command = [sys.executable, "-m", "gptflow_recommendation_scoring.fitting"]
    done = subprocess.run([*command, rows, out], capture_output=True, text=True, check=True)
    assert "auc" in done.stdout
    blend = json.loads(out.read_text())
    item = {"item_id": "a", "features": {"popularity": 700, "price": 10}}
    assert rank([item], blend=blend).items[0].p > 0.5
    rows.write_text('{"group": "a"}\n')
    bad = subprocess.run([*command, rows, out], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "shown.jsonl:1: features" in bad.stderr
