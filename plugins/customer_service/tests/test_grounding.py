"""The grounding check: what an answer may say, given the passages."""

from __future__ import annotations

import pytest

from gptflow_customer_service import facts
from gptflow_customer_service.extraction import best_sentence
from gptflow_customer_service.grounding import check

FEES = "Standard delivery costs 4.90 euros and is free for orders of 1,000 euros or more."
DAYS = "We refund within 5 working days. Opened cosmetics cannot be returned."
FEES_ZH = "标准配送收费 4.90 欧元，订单满 1,000 欧元免运费。"


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("Standard delivery costs €4.90.", FEES),
        ("Delivery is free for orders of 1000 euros or more.", FEES),
        ("Delivery is free for orders of １０００ euros.", FEES),
        ("We refund within five business days.", DAYS),
        ("Opened cosmetics cannot be returned.", DAYS),
        ("标准配送收费４.９０欧元。", FEES_ZH),
        ("订单满 1000 欧元免运费。", FEES_ZH),
        ("五个工作日内退款。", "5 个工作日内退款。"),
        ("Report it by January 31.", "Report it by 31 January."),
    ],
)
def test_the_same_facts_in_other_spelling_are_supported(answer: str, passage: str) -> None:
    grounding = check(answer, [passage])
    assert grounding.ok, grounding


@pytest.mark.parametrize(
    ("answer", "passage", "unsupported"),
    [
        ("Standard delivery costs 5.90 euros.", FEES, "5.90 euros"),
        ("Standard delivery costs 4.90 dollars.", FEES, "4.90 dollars"),
        ("We refund within 5 hours.", DAYS, "5 hours"),
        ("We refund within seven working days.", DAYS, "7 working days"),
        ("标准配送收费 9.90 欧元。", FEES_ZH, "9.90 欧元"),
        ("十个工作日内退款。", "5 个工作日内退款。", "10个工作日"),
        ("We refund within 5 working days by Zephyrbank.", DAYS, "Zephyrbank"),
        ("Write to x@evil.example, we refund.", DAYS, "x@evil.example"),
        ("Report it by 30 January.", "Report it by 31 January.", "30"),
        ("Report it by 31 March.", "Report it by 31 January.", "March"),
    ],
)
def test_a_changed_number_unit_date_or_name_is_refused(
    answer: str, passage: str, unsupported: str
) -> None:
    grounding = check(answer, [passage])
    assert not grounding.ok
    assert unsupported in grounding.unsupported


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("Opened cosmetics can be returned.", DAYS),
        ("已拆封的化妆品可以退。", "已拆封的化妆品不可以退。"),
        ("Penguins live at the south pole.", DAYS),
        ("Yes.", DAYS),
        ("", DAYS),
        ("We refund within 5 working days.", ""),
    ],
)
def test_the_opposite_and_the_unrelated_are_refused(answer: str, passage: str) -> None:
    assert not check(answer, [passage]).ok


def test_each_sentence_is_traced_to_the_passage_that_says_it() -> None:
    answer = "We refund within 5 working days. Standard delivery costs 4.90 euros."
    assert [index for index, _ in check(answer, [FEES, DAYS]).quotes] == [1, 0]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("3 to 5 working days", {"3 working day", "5 working day"}),
        ("3 至 5 个工作日", {"3 working day", "5 working day"}),
        ("$1,250.00", {"1250 USD"}),
        ("百分之五", set()),
        ("1.5 % of it", {"1.5 %"}),
        ("from 9:00 to 19:00", {"9:00", "19:00"}),
        ("两天", {"2 day"}),
        ("十二小时", {"12 hour"}),
        ("12 月 24 日", {"12 month of the year", "24 day"}),
        ("a 2-year warranty", {"2 year"}),
    ],
)
def test_quantities_have_one_form(text: str, canonical: set[str]) -> None:
    assert set(facts.quantities(text)) == canonical


def test_the_sentence_that_shares_most_with_the_question_is_quoted() -> None:
    found = best_sentence("Can opened cosmetics be sent back?", DAYS)
    assert found is not None
    assert found.sentence == "Opened cosmetics cannot be returned."
    assert best_sentence("Who sings?", DAYS) is None
