"""Declarations of monitors."""

from pathlib import Path

import pytest

from gptflow.errors import ConfigError
from gptflow.monitoring import monitors


def declare(tmp_path: Path, text: str) -> dict[str, monitors.Monitor]:
    path = tmp_path / "monitors.toml"
    path.write_text(text)
    return monitors.load(path)


def test_no_file_declares_no_monitor(tmp_path: Path) -> None:
    assert monitors.load(tmp_path / "monitors.toml") == {}


def test_spans_are_written_with_their_unit(tmp_path: Path) -> None:
    found = declare(
        tmp_path,
        '[[monitor]]\nname = "oil"\nsource = "oil.csv"\ncron = "*/15 * * * *"\n'
        'bucket = "6h"\nlateness = 90\ncooldown = "2d"\n',
    )
    assert (found["oil"].bucket, found["oil"].lateness) == (21_600, 90)
    assert found["oil"].rule.cooldown == 8


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[monitor]]\nname = "a"\nbuckets = 3\n', "buckets"),
        ('[[monitor]]\nname = "a"\nbucket = "7h"\n', "whole number of buckets"),
        ('[[monitor]]\nname = "a"\ncron = "hourly"\n', "cron"),
        ('[[monitor]]\nname = "a"\n[[monitor]]\nname = "a"\n', "twice"),
        ('[[monitor]]\nname = "../a"\n', "name"),
        ("[monitor]\n", "other than"),
        ("[[monitor]\n", "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        declare(tmp_path, text)


def test_the_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(monitors.VARIABLE, str(tmp_path / "mine.toml"))
    assert monitors.default_path() == tmp_path / "mine.toml"
