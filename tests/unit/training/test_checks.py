"""Checks: what keeps data from being trained on is an error with a code; the rest is said."""

from __future__ import annotations

import pytest

from gptflow.errors import BadLabel, EmptyData, LeakedRows, OneClass, UnseenLabel
from gptflow.training.data import checks, requirements
from gptflow.training.data.language import language_of
from gptflow.training.data.problem import Problem
from gptflow.training.data.reading import Reading
from gptflow.training.data.rows import LabelledText, Origin, TaggedText, Token
from gptflow.training.data.statistics import describe


def rows(*pairs, file="a"):
    return tuple(
        LabelledText(origin=Origin(file, line), text=text, labels={"label": label})
        for line, (text, label) in enumerate(pairs, 1)
    )


def reading(*pairs, file="a", problems=()):
    return Reading(rows(*pairs, file=file), problems, (file,))


GOOD = tuple((f"text {n}", "xy"[n % 2]) for n in range(20))


def codes(findings):
    return [remark.code for remark in findings.remarks if remark.severity == "error"]


def test_data_without_fault_has_nothing_to_be_said_about_it():
    findings = checks.check(reading(*GOOD))
    assert findings.ok
    assert findings.remarks == []
    checks.require(findings)


@pytest.mark.parametrize(
    ("train", "test", "error"),
    [
        ((("a", "x"), ("b", "x")), (), OneClass),
        (GOOD, (("new", "z"),), UnseenLabel),
        (GOOD, (("TEXT 3", "x"),), LeakedRows),
        ((), (), EmptyData),
    ],
)
def test_what_training_would_refuse_is_an_error_of_that_kind(train, test, error):
    findings = checks.check(reading(*train), reading(*test, file="b") if test else None)
    assert codes(findings) == [error.code]
    assert not findings.ok
    with pytest.raises(error) as caught:
        checks.require(findings)
    assert caught.value.hint


def test_bad_lines_come_first():
    problem = Problem(Origin("a", 9), "label", "the label is blank")
    with pytest.raises(BadLabel, match="a:9"):
        checks.require(checks.check(reading(("a", "x"), problems=(problem,))))


def test_unseen_labels_are_named_with_their_first_row():
    with pytest.raises(UnseenLabel, match=r"'z'; the first is b:2"):
        requirements.require_seen(rows(*GOOD), rows(("a", "x"), ("b", "z"), ("c", "z"), file="b"))


def test_a_leak_names_both_rows():
    with pytest.raises(LeakedRows, match=r"1 test row is a training row too: b:1 repeats a:4\."):
        requirements.require_unleaked(rows(*GOOD), rows(("Text  3", "x"), file="b"))


def test_tags_need_a_span():
    row = TaggedText(origin=Origin("a", 1), text="a", tokens=(Token(0, 1),), tags=("O",))
    with pytest.raises(OneClass, match="is O"):
        requirements.require_types([row])


def test_contradictions_and_rare_labels_are_warnings():
    findings = checks.check(reading(*GOOD, ("text 1", "x"), ("rare", "z")))
    assert findings.ok
    told = [remark.message for remark in findings.remarks]
    assert any("'x' for 'label' here and 'y' in a:2" in message for message in told)
    assert any("Fewer than 5 rows of 'z'" in message for message in told)
    assert [(d.first, d.second) for d in findings.duplicates] == [(1, 20)]


def test_personal_data_is_counted_by_kind_and_row_and_never_shown():
    findings = checks.check(reading(*GOOD, ("jo@example.com and 13812345678", "x")))
    told = findings.as_dict()
    assert told["personal_data"] == {
        "counts": {"email": 1, "phone": 1},
        "rows": [{"file": "a", "line": 21}],
    }
    assert "example.com" not in str(told)


def test_statistics_count_labels_lengths_and_languages():
    found = describe([*rows(*GOOD), *rows(("今天天气很好", "x"))])
    assert found["rows"] == 21
    assert found["labels"] == {"label": {"x": 11, "y": 10}}
    assert found["languages"] == {"latin": 20, "zh": 1}
    assert found["length"] == {"min": 6, "median": 6, "p95": 7, "max": 7}
    assert describe([]) == {"rows": 0}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("hello", "latin"),
        ("今天 AAPL 大涨", "zh"),
        ("今日は良い天気です", "ja"),
        ("안녕하세요", "ko"),
        ("привет", "cyrillic"),
        ("$$$ 123", "none"),
    ],
)
def test_the_script_tells_the_language(text, language):
    assert language_of(text) == language
