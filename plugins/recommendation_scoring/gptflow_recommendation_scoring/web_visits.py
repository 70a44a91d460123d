"""The files of the UCI data set "Anonymous Microsoft Web Data", for training and benchmarks."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path


def read_visits(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Areas by user in the order of visiting, and titles by area."""
    visits: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    user = ""
    with gzip.open(path, "rt", encoding="latin-1", newline="") as lines:
        for row in csv.reader(lines):
            match row:
                case ["A", area, _, title, *_]:
                    titles[area] = title
                case ["C", _, user, *_]:
                    visits[user] = []
                case ["V", area, *_]:
                    visits[user].append(area)
    return visits, titles
