"""Duplicates and leaks: every pair that is alike is found, and no other."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gptflow.training.data.duplicates import (
    FEWEST_FEATURES,
    _features,
    _near_pairs,
    find_duplicates,
    find_leaks,
    groups_of,
    normalise,
)
from gptflow.training.data.rows import LabelledText, Origin


def rows(*texts, file="a"):
    return [
        LabelledText(origin=Origin(file, line), text=text, labels={})
        for line, text in enumerate(texts, 1)
    ]


LONG = "the quick brown fox jumps over the lazy dog near the old river bank today"


def test_case_spacing_links_and_invisible_characters_do_not_count():
    found = find_duplicates(
        rows("Apple &amp; Co rose", "apple & co\u200b  ROSE", "Apple & Co rose https://t.co/x")
    )
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [
        (0, 1, "exact"),
        (0, 2, "exact"),
    ]


def test_near_duplicates_are_found_with_how_alike_they_are():
    [pair] = find_duplicates(rows(LONG, "something else", LONG + " again"))
    assert (pair.first, pair.second, pair.kind) == (0, 2, "near")
    assert 0.8 <= pair.similarity < 1


def test_short_texts_are_compared_exactly():
    assert find_duplicates(rows("where is my card", "where is my cards")) == []


def test_chinese_is_compared_by_characters():
    text = "今天股票市场大幅上涨投资者情绪非常乐观成交量明显放大"
    [pair] = find_duplicates(rows(text, text + "了"))
    assert pair.kind == "near"


@given(
    st.lists(
        st.lists(st.sampled_from("abcdef"), min_size=4, max_size=9).map(" ".join),
        max_size=12,
    ),
    st.sampled_from([0.5, 0.7, 0.8, 1.0]),
)
def test_all_near_pairs_are_found_and_no_other(texts, near):
    found = {
        (pair.first, pair.second)
        for pair in find_duplicates(rows(*texts), near=near)
        if pair.kind == "near"
    }
    firsts = {}
    for place, text in enumerate(texts):
        firsts.setdefault(normalise(text), place)
    expected = set()
    for one, other in combinations(sorted(firsts.values()), 2):
        a, b = set(_features(texts[one])), set(_features(texts[other]))
        if min(len(a), len(b)) >= FEWEST_FEATURES and len(a & b) / len(a | b) >= near:
            expected.add((one, other))
    assert found == expected


@given(
    st.lists(st.frozensets(st.sampled_from("abcdefghijklmn"), min_size=8), max_size=10),
    st.sampled_from([0.5, 0.7, 0.8, 0.9]),
)
def test_no_pair_at_the_very_threshold_is_missed(sets, near):
    expected = {
        (one, other)
        for one, other in combinations(range(len(sets)), 2)
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= near
    }
    assert {(one, other) for one, other, _ in _near_pairs(sets, near)} == expected


def test_leaks_are_test_rows_beside_the_training_row_most_like_them():
    train = rows("other", LONG + " too", LONG)
    test = rows("new one", LONG.upper(), LONG + " again", LONG, file="b")
    leaks = find_leaks(train, test)
    assert [(leak.second, leak.first, leak.kind) for leak in leaks] == [
        (1, 2, "exact"),
        (2, 2, "near"),
        (3, 2, "exact"),
    ]


def test_rows_of_one_part_are_no_leak():
    assert find_leaks(rows("a", "a"), rows("b", "b")) == []


def test_groups_join_through_others():
    pairs = find_duplicates(rows("x", "y", "x", "X", "y"))
    assert groups_of(5, pairs) == [0, 1, 0, 0, 1]
