"""Series: which ones a post counts in, and the figures drawn from them."""

import pytest

from gptflow.monitoring.series import Key, Opinion, Point, counts, floor, wilson


def test_a_post_counts_for_all_its_topic_and_its_entities() -> None:
    opinion = Opinion(topic="Oil", label="negative", p_negative=0.9, entities=("XOM", "CVX"))
    assert opinion.keys == (Key(), Key("Oil"), Key(entity="XOM"), Key(entity="CVX"))
    assert opinion.point + Point(raw=1) == Point(raw=2, total=1, negative=1)


def test_buckets_are_of_event_time() -> None:
    assert floor(7199.9, 3600) == 3600
    assert floor(7200.0, 3600) == 7200


def test_buckets_without_posts_are_zero() -> None:
    filled = counts({3600: Point(total=3, negative=2)}, start=0, stop=10_800, bucket=3600)
    assert [filled.window(end, 1) for end in (1, 2, 3)] == [(0, 0), (2, 3), (0, 0)]


def test_wilson_interval_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
