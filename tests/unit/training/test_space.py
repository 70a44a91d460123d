"""What a search looks through."""

from __future__ import annotations

from typing import Any

import pytest

from gptflow.errors import (
    ConfigError,
)
from gptflow.training.settings import TrainingSettings
from gptflow.training.tuning import space as spaces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-4:1e-3:log", spaces.Range(1e-4, 1e-3, log=True)),
        ("dropout=0:0.2", spaces.Range(0.0, 0.2)),
        ("rank=4:64:log", spaces.Range(4, 64, log=True, whole=True)),
        ("rank=8,16,32", spaces.Values((8, 16, 32))),
        ("head-learning-rate=1e-3", spaces.Values((1e-3,))),
        ("class_weights=true,false", spaces.Values((True, False))),
        ("layers=all, upper", spaces.Values(("all", "upper"))),
    ],
)
def test_dimensions_are_read_as_the_settings_have_them(text: str, expected: Any) -> None:
    [found] = spaces.parse(spaces.written([text]), TrainingSettings()).values()
    assert found == expected
    assert not isinstance(expected, spaces.Values) or [type(v) for v in found.values] == [
        type(value) for value in expected.values
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank", "'rank' is no dimension"),
        ("rank=", "no dimension"),
        ("=8", "no dimension"),
        ("rnak=8,16", "no setting 'rnak'"),
        ("rank=8,16.5", "rank"),
        ("rank=8,8", "twice"),
        ("rank=0:8", "rank"),
        ("dropout=0:1.5", "dropout"),
        ("learning_rate=1e-3:1e-4", "ends before it begins"),
        ("dropout=0:0.2:log", "logarithmic"),
        ("learning_rate=1e-4:1e-3:linear", "no range"),
        ("learning_rate=nan:1", "learning_rate"),
        ("layers=all:upper", "no number"),
        ("class_weights=false:true", "no number"),
        ("seed=1,2", "seed is not searched"),
        ("dev=0.1:0.3", "dev is not searched"),
        ("method=lora,head", "method is not searched"),
    ],
)
def test_what_is_wrong_with_a_space_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spaces.parse(spaces.written([text]), TrainingSettings())


def test_values_that_do_not_go_with_the_method_are_told() -> None:
    with pytest.raises(ConfigError, match="layers = upper goes with"):
        spaces.parse({"layers": "all,upper"}, TrainingSettings.of(method="head"))


def test_a_setting_is_given_one_dimension_and_a_space_has_some() -> None:
    with pytest.raises(ConfigError, match="rank is given twice"):
        spaces.written(["rank=8", "rank=16"])
    with pytest.raises(ConfigError, match="empty"):
        spaces.parse({}, TrainingSettings())


@pytest.mark.parametrize("method", ["lora", "head", "full"])
@pytest.mark.parametrize("kind", ["labels", "tags", "scores", "dialogues"])
def test_the_default_space_holds_what_matters_to_the_method_and_the_rows(
    method: str, kind: str
) -> None:
    settings = TrainingSettings.of(method=method)
    space = spaces.default_space(settings, kind)
    spaces.parse(space, settings)
    assert ("rank" in space) == ("dropout" in space) == (method == "lora")
    assert ("learning_rate" in space) == (method != "head")
    assert ("head_learning_rate" in space) == (kind != "dialogues")
    assert ("class_weights" in space) == (kind == "labels")
