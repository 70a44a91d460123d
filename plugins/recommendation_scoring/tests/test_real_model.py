"""What the default model makes of a history."""

from __future__ import annotations

import pytest

from gptflow.client import Client
from gptflow.errors import GPTFlowError


@pytest.mark.model
def test_the_model_prefers_what_is_like_the_history():
    given = {
        "user": {
            "id": "u1",
            "history": [
                {"item_id": "h1", "text": "Red Dust: the first colony on Mars loses contact"},
                {"item_id": "h2", "text": "The Last Orbit: an astronaut repairs a space station"},
            ],
        },
        "candidates": [
            {"item_id": "space", "text": "Europa Station: a crew drills on Jupiter's moon"},
            {"item_id": "love", "text": "Wedding at the Lake: two rival florists fall in love"},
        ],
        "weights": {"similarity": 0.0},
    }
    try:
        client = Client("memory://")
    except (GPTFlowError, ImportError) as error:
        pytest.skip(f"no model to test with: {error}")
    with client:
        output = client.run("recommend.rank", given, timeout=120)
    assert [entry["item_id"] for entry in output["items"]] == ["space", "love"]
    assert output["items"][0]["interest"]["margin"] > 0
