"""Training rows that repeat others."""

from __future__ import annotations

from gptflow.training.data.repeats import leave_out_repeats
from gptflow.training.data.rows import LabelledText, Origin


def labelled(line: int, text: str, **labels: str) -> LabelledText:
    return LabelledText(origin=Origin("rows.csv", line), text=text, labels=labels)


def test_what_repeats_a_held_out_row_or_an_earlier_one_is_left_out() -> None:
    train = [
        labelled(1, "Shares rise https://t.co/a", mood="good"),
        labelled(2, "shares  RISE", mood="good"),
        labelled(3, "Shares fall", mood="bad"),
        labelled(4, "Gold glitters", mood="good"),
    ]
    found = leave_out_repeats(train, [labelled(1, "shares fall https://t.co/b", mood="bad")])
    assert [row.origin.line for row in found.rows] == [1, 4]
    assert (found.repeated, found.held_out) == (1, 1)
    assert str(found).startswith("2 training rows left out")


def test_the_same_text_for_another_head_or_with_another_label_stays() -> None:
    train = [
        labelled(1, "Shares rise", mood="good"),
        labelled(2, "Shares rise", topic="markets"),
        labelled(3, "Shares rise", mood="bad"),
    ]
    found = leave_out_repeats(train, [labelled(1, "Shares rise", language="en")])
    assert found.rows == train
