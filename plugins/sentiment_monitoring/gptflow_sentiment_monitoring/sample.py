"""The sample feed: about 200 posts of three weeks, written for this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptflow.errors import InvalidInput
from gptflow.monitoring.sources import read_jsonl

FEEDS = {"market": "sample_feed.jsonl"}


def read_sample(location: str) -> Iterator[Mapping[str, Any]]:
    """Read `sample:market`.

    Raises:
        InvalidInput: there is no sample of this name.
    """
    if location not in FEEDS:
        raise InvalidInput(
            f"There is no sample feed {location!r}.", hint=f"Known: {', '.join(FEEDS)}."
        )
    return read_jsonl(str(Path(__file__).with_name(FEEDS[location])))
