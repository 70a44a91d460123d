"""Monitors: what to watch and when, declared in `monitors.toml`.

    [[monitor]]
    name = "markets"
    source = "feeds/markets.jsonl"     # relative to this file, or scheme:location
    cron = "*/15 * * * *"              # UTC; leave it out to run by hand only

The file is `$GPTFLOW_MONITORS`, else `monitors.toml` in the data folder.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gptflow import config, validation
from gptflow.errors import ConfigError, GPTFlowError
from gptflow.monitoring.surge import DAY, HOUR, Rule

VARIABLE = "GPTFLOW_MONITORS"
FILE_NAME = "monitors.toml"
FEEDS = "feeds"
"""The folder, beside `monitors.toml` or in the data folder, that feeds may always be in."""

_SPAN = re.compile(r"(\d+)\s*([smhd])")
_UNITS = {"s": 1, "m": 60, "h": HOUR, "d": DAY}
_CRON = r"^\s*\S+(\s+\S+){4}\s*$"


def _seconds(value: Any) -> Any:
    if isinstance(value, str) and (match := _SPAN.fullmatch(value.strip())):
        return int(match[1]) * _UNITS[match[2]]
    return value


Span = Annotated[int, BeforeValidator(_seconds)]
"""Seconds, or a number with s, m, h or d."""


class Monitor(BaseModel):
    """What to watch.

    A bucket must divide the day, so that the same hour of another day is a bucket too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    source: str | None = Field(None, max_length=1024)
    cron: str | None = Field(None, pattern=_CRON, description="five fields, UTC")
    bucket: Span = Field(HOUR, ge=60, le=DAY, description="length of the series' buckets")
    lateness: Span = Field(900, ge=0, le=DAY, description="how late a post may come in")
    limit: int = Field(5000, ge=1, le=100_000, description="new posts in one run at most")
    minimum: int = Field(10, ge=1, description="fewest negatives worth an alert")
    ratio: float = Field(2.0, ge=1, description="least multiple of the expected negatives")
    cooldown: Span = Field(DAY, ge=0, description="quiet time before the next alert")
    false_alarms: float = Field(0.02, gt=0, le=1, description="per series and week, at most")

    @model_validator(mode="after")
    def _divides_the_day(self) -> Monitor:
        if DAY % self.bucket:
            raise ValueError(f"a day is not a whole number of buckets of {self.bucket} s")
        return self

    @property
    def rule(self) -> Rule:
        """The rule before calibration."""
        return Rule(
            minimum=self.minimum, ratio=self.ratio, cooldown=round(self.cooldown / self.bucket)
        )


def default_path(settings: config.Settings | None = None) -> Path:
    """Where monitors are declared; the file need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    return (settings or config.load()).data_dir / FILE_NAME


def load(path: Path | None = None) -> dict[str, Monitor]:
    """The declared monitors by name; none where there is no file.

    Raises:
        ConfigError: the file cannot be read, or a declaration does not fit.
    """
    path = path or default_path()
    if not path.is_file():
        return {}
    try:
        declared = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    entries = declared.get("monitor", [])
    if set(declared) - {"monitor"} or not isinstance(entries, list):
        raise ConfigError(f"{path} holds something other than [[monitor]] tables.")
    monitors: dict[str, Monitor] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        monitor = parse(entry, f"{path}, monitor {name!r}")
        if monitor.name in monitors:
            raise ConfigError(f"{path} declares monitor {monitor.name!r} twice.")
        monitors[monitor.name] = monitor
    return monitors


def roots(path: Path, settings: config.Settings) -> tuple[Path, ...]:
    """The folders that feeds may be in: beside the declarations, and the data folder's `feeds`."""
    return (path.parent, settings.data_dir / FEEDS)


def parse(entry: Any, origin: str, *, error: type[GPTFlowError] = ConfigError) -> Monitor:
    """Check one declaration; `origin` says where it stands, `error` what to raise."""
    try:
        return Monitor.model_validate(entry)
    except ValidationError as problem:
        raise error(f"{origin}: {validation.explain(problem, entry, whole='it')}.") from None
