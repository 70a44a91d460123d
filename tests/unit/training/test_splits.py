"""Splits: what must stay together does, and the parts are what was asked for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptflow.errors import SplitImpossible
from gptflow.training.data.duplicates import find_duplicates
from gptflow.training.data.rows import LabelledText, Origin
from gptflow.training.data.splits import split


def row(number, label="x", *, text=None, group=None, time=None):
    return LabelledText(
        origin=Origin("a", number + 1),
        text=text or f"row {number}",
        labels={"label": label},
        group=group,
        time=time,
    )


def test_every_row_is_in_one_part_in_its_order_and_a_seed_repeats_itself():
    rows = [row(n, "xyz"[n % 3]) for n in range(100)]
    one, again, other = (split(rows, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert sorted(one.train + one.dev + one.test, key=lambda r: r.origin) == rows
    sizes = [len(part) for part in one.parts.values()]
    assert all(abs(size - share) <= 3 for size, share in zip(sizes, (80, 10, 10), strict=True))
    assert list(one.train) == sorted(one.train, key=lambda r: r.origin)


def test_a_stratified_split_keeps_proportions_of_rare_classes_too():
    rows = [row(n, "rare" if n % 20 == 0 else "common") for n in range(400)]
    parts = split(rows, method="stratified", dev=0.25, test=0.25).parts
    counts = {name: Counter(r.labels["label"] for r in part) for name, part in parts.items()}
    assert counts["train"] == {"rare": 10, "common": 190}
    assert counts["dev"] == counts["test"] == {"rare": 5, "common": 95}


@given(st.lists(st.integers(0, 12), min_size=40, max_size=80), st.integers(0, 5))
def test_groups_never_part(groups, seed):
    rows = [row(n, "ab"[n % 2], group=str(group)) for n, group in enumerate(groups)]
    try:
        parts = split(rows, method="grouped", dev=0.2, test=0.2, seed=seed).parts
    except SplitImpossible:
        assert len(set(groups)) < 12
        return
    where = Counter()
    for part in parts.values():
        where.update({r.group for r in part})
    assert max(where.values()) == 1


def test_duplicates_never_part():
    rows = [row(n, "ab"[n % 2], text=f"text {n // 4}") for n in range(80)]
    parts = split(rows, method="random", duplicates=find_duplicates(rows)).parts
    texts = [{r.text for r in part} for part in parts.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_a_temporal_split_tests_on_what_came_last():
    rows = [row(n, time=float((n * 7) % 20)) for n in range(20)]
    parts = split(rows, method="temporal", dev=0.2, test=0.2)
    assert max(r.time for r in parts.train) < min(r.time for r in parts.dev)
    assert max(r.time for r in parts.dev) < min(r.time for r in parts.test)
    assert [len(p) for p in parts.parts.values()] == [12, 4, 4]


def test_rows_of_one_moment_are_on_one_side():
    rows = [row(n, time=float(n // 5)) for n in range(20)]
    parts = split(rows, method="temporal", dev=0, test=0.3)
    assert {r.time for r in parts.train} & {r.time for r in parts.test} == set()
    assert parts.dev == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dev": 0.5, "test": 0.5}, "nothing to train on"),
        ({"dev": -0.1}, "nothing to train on"),
        ({"method": "grouped"}, "has no group"),
        ({"method": "temporal"}, "has no time"),
    ],
)
def test_splits_that_cannot_be_are_refused_with_what_to_do(options, words):
    with pytest.raises(SplitImpossible, match=words) as caught:
        split([row(n) for n in range(10)], **options)
    assert caught.value.hint


def test_one_group_leaves_nothing_for_the_other_parts():
    with pytest.raises(SplitImpossible, match="leave none for"):
        split([row(n, group="all") for n in range(50)], method="grouped")
