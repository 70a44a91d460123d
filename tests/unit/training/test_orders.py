"""Trainings as they travel: what they may say, and what data they may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from gptflow.config import Settings
from gptflow.errors import DataForbidden
from gptflow.training.order import Order, describe, require_allowed
from gptflow.training.runs import DataFile
from gptflow.training.worker import for_training

Invoke = Callable[..., tuple[int, str, str]]


def a_file(path: Path | str = "/in/rows.jsonl", **fields: Any) -> dict[str, Any]:
    given = {"path": str(path), "split": "train", "kind": "labels", "sha256": "0" * 64}
    return given | fields


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "either run, or task and data"),
        ({"run": "mood-1", "task": "bed.mood", "data": [a_file()]}, "either run"),
        ({"task": "bed.mood"}, "either run"),
        ({"task": "bed.mood", "data": [a_file(kind="pickles")]}, "no rows of the kind"),
        ({"task": "bed.mood", "data": [a_file(source={"shell": "x"})]}, "source"),
        ({"task": "bed.mood", "data": [a_file(name="x" * 201)]}, "more than 200"),
        ({"task": "bed.mood", "data": [a_file()], "settings": {"rank": 0}}, "greater than"),
        ({"task": "bed.mood", "data": [a_file()], "command": "rm"}, "Extra inputs"),
    ],
)
def test_an_order_says_what_to_train_and_nothing_else(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Order.model_validate(given)


def test_files_are_read_in_the_named_folders_only_whatever_links_lead_there(
    tmp_path: Path,
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-between"
    inside.mkdir()
    outside.mkdir()
    (inside / "rows.jsonl").touch()
    (outside / "rows.jsonl").touch()
    (inside / "link.jsonl").symlink_to(outside / "rows.jsonl")
    (inside / "links").symlink_to(outside)

    def names(path: Path) -> list[DataFile]:
        return [DataFile.model_validate(a_file(path))]

    require_allowed(names(inside / "rows.jsonl"), [tmp_path / "other", inside])
    require_allowed(names(inside / "link.jsonl"), [inside, outside])
    for path in (
        outside / "rows.jsonl", inside / "link.jsonl", inside / "links" / "rows.jsonl",
        inside / ".." / "in-between" / "rows.jsonl", Path("/etc/passwd"),
    ):  # fmt: skip
        with pytest.raises(DataForbidden, match="may not read"):
            require_allowed(names(path), [inside])
    with pytest.raises(DataForbidden, match="any files") as refused:
        require_allowed(names(inside / "rows.jsonl"), [])
    assert "GPTFLOW_TRAIN_DATA" in str(refused.value.hint)


def test_events_are_told_in_a_line_each() -> None:
    step = {"kind": "step", "step": 3, "steps": 9, "loss": 0.5, "tokens_per_s": 120.0}
    assert describe(step | {"figures": None}) == "step 3/9: loss 0.5000, 120 tokens/s"
    assert "accuracy 0.9000" in str(describe(step | {"figures": {"accuracy": 0.9}}))
    assert describe({"kind": "something newer"}) is None


def test_trainings_have_a_queue_of_their_own_and_run_one_at_a_time() -> None:
    settings, parts = for_training(Settings(app="shop"))
    assert settings.app == "shop-train"
    assert settings.concurrency == settings.in_flight == 1
    assert list(parts.registry.tasks) == ["train.run"]


def test_a_training_is_sent_only_where_there_is_a_queue(
    gptflow: Invoke, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(2)))
    args = ("train", "tiny.topic", "--data", rows, "--queue")
    code, _, err = gptflow(*args)
    assert code == 10
    assert "gptflow up" in err
    code, _, err = gptflow(*args, "--gate", "accuracy=inf")
    assert code == 3
    assert "gates.accuracy" in err
