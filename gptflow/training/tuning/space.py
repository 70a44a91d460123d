"""Search spaces: which settings a search may change, and to what.

A dimension is written as a range, `1e-4:1e-3` or `1e-4:1e-3:log`, or as values, `8,16,32`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from gptflow.errors import ConfigError
from gptflow.suggestion import did_you_mean
from gptflow.training.data.source import Kind
from gptflow.training.settings import TrainingSettings

UNSEARCHED = frozenset(
    {"method", "seed", "dev", "evaluations", "storage", "checkpoint_minutes", "device"}
)
"""Another development split, or others of its evaluations, would make figures that do not compare;
the rest has nothing to do with how good an adapter is, or everything."""

_DIGITS = 4
"""Of a number that is drawn from a range: enough, and people can type it."""


class Suggests(Protocol):
    """The part of an Optuna trial that draws values."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two bounds, both included; whole ones where the setting is whole."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, trial: Suggests, name: str) -> float:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.{_DIGITS}g}")

    def holds(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """One of a few values."""

    values: tuple[Any, ...]

    def draw(self, trial: Suggests, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def holds(self, value: Any) -> bool:
        return value in self.values


Space = Mapping[str, Range | Values]


def default_space(settings: TrainingSettings, kind: str | Kind) -> dict[str, str]:
    """What is searched unless somebody says otherwise, as it is written.

    Args:
        settings: whose method is trained.
        kind: of the rows.
    """
    space: dict[str, str] = {}
    if settings.method == "lora":
        space |= {"rank": "8,16,32", "learning_rate": "1e-4:2e-3:log", "dropout": "0:0.2"}
    elif settings.method == "full":
        space |= {"learning_rate": "5e-6:1e-4:log"}
    if kind in ("labels", "tags", "scores"):
        space |= {"head_learning_rate": "3e-4:1e-2:log"}
    space |= {"epochs": "2,3,5", "batch": "16,32,64"}
    if kind == "labels":
        space |= {"class_weights": "false,true"}
    return space


def written(given: Iterable[str]) -> dict[str, str]:
    """Dimensions from `NAME=RANGE` and `NAME=VALUES`, as they are typed.

    Raises:
        ConfigError: one is of another form, or there are two of a name.
    """
    space: dict[str, str] = {}
    for each in given:
        name, equals, dimension = each.partition("=")
        name = name.strip().replace("-", "_")
        if not (equals and name and dimension.strip()):
            raise _wrong(f"{each!r} is no dimension of a search space")
        if name in space:
            raise _wrong(f"{name} is given twice")
        space[name] = dimension.strip()
    return space


def parse(space: Mapping[str, str], settings: TrainingSettings) -> Space:
    """Dimensions as they are written.

    Args:
        settings: what is trained with where the space says nothing.

    Raises:
        ConfigError: there is no such setting, it is not to be searched, or a value does not fit it.
    """
    if not space:
        raise _wrong("The search space is empty: every setting is given")
    return {name: _dimension(name, text, settings) for name, text in space.items()}


def draw(trial: Suggests, space: Space, settings: TrainingSettings) -> TrainingSettings:
    """Settings for a trial.

    Raises:
        ConfigError: they do not go together.
    """
    drawn = {name: dimension.draw(trial, name) for name, dimension in space.items()}
    return TrainingSettings.of(**settings.model_dump() | drawn)


def _dimension(name: str, text: str, settings: TrainingSettings) -> Range | Values:
    if name not in TrainingSettings.model_fields:
        known = TrainingSettings.model_fields.keys() - UNSEARCHED
        raise _wrong(
            f"There is no setting {name!r}",
            did_you_mean(name, known) or f"There are {', '.join(sorted(known))}.",
        )
    if name in UNSEARCHED:
        option = "--dev-share" if name == "dev" else f"--{name.replace('_', '-')}"
        raise _wrong(f"{name} is not searched", f"It is the same for all trials: `{option}`.")
    if ":" not in text:
        values = tuple(_value(name, each.strip(), settings) for each in text.split(","))
        if len(set(values)) < len(values):
            raise _wrong(f"{name}={text} names a value twice")
        return Values(values)
    low, high, *rest = (part.strip() for part in text.split(":"))
    if rest not in ([], ["log"]):
        raise _wrong(f"{name}={text} is no range")
    bounds = [_value(name, each, settings) for each in (low, high)]
    if not all(type(bound) in (int, float) for bound in bounds):
        raise _wrong(f"{name} is no number, and has no range", f"Name its values: `{name}=A,B`.")
    if not bounds[0] < bounds[1]:
        raise _wrong(f"{name}={text} ends before it begins")
    if rest and not bounds[0] > 0:
        raise _wrong(f"{name}={text} is no logarithmic range: it begins at {bounds[0]}")
    return Range(bounds[0], bounds[1], log=bool(rest), whole=type(bounds[0]) is int)


def _value(name: str, text: str, settings: TrainingSettings) -> Any:
    # As the command line, pydantic takes numbers and `true` from text.
    fits = TrainingSettings.of(**settings.model_dump() | {name: text})
    return getattr(fits, name)


def _wrong(message: str, hint: str | None = None) -> ConfigError:
    return ConfigError(
        f"{message}.",
        hint=hint or "Such as `--space learning_rate=1e-4:1e-3:log --space rank=8,16,32`.",
    )
