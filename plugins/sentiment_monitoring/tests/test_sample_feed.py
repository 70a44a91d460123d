"""The sample feed is what its script writes."""

import json
import subprocess
import sys
from pathlib import Path

from gptflow.monitoring.sources import Post, posts
from gptflow_sentiment_monitoring import sample

SCRIPT = Path(__file__).parents[1] / "make_sample_feed.py"


def test_the_feed_can_be_made_again() -> None:
    made = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True, timeout=60
    )
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    assert rows == [
        {k: v for k, v in row.items() if k != "line"} for row in sample.read_sample("market")
    ]


def test_the_feed_is_sound_and_in_order() -> None:
    found = [row for row in posts(sample.read_sample("market")) if isinstance(row, Post)]
    assert len(found) >= 200
    assert len({post.id for post in found}) == len(found)
    assert [post.ts for post in found] == sorted(post.ts for post in found)
