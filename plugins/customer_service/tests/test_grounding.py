"""The grounding check: what an answer may say, given the passages."""

from __future__ import annotations

import pytest

from gptflow_customer_service import facts, words
from gptflow_customer_service.extraction import best_sentence
from gptflow_customer_service.grounding import check
from gptflow_customer_service.knowledge import Knowledge, Locale

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


SHOP = [
    "Standard delivery takes 3 to 5 working days. Returns are free within 30 days.",
    "Express delivery takes 1 working day. Refunds are paid within 14 days.",
    'Choose "Wrong item" within 14 days; we send the right one and pay for the return.',
    "Ask Marta Lind about returns until 31 January. Ask Omar Faris about refunds.",
]
SHOP_ZH = [
    "标准配送需要 3 至 5 个工作日。30 天内可以免费退货。",
    "加急配送需要 1 个工作日。退款在 14 天内支付。",
    "请在 14 天内点击“发错货”，我们会补发商品，并承担退货运费。",
    "退货可以寄到《北京仓库》，截止日期是 1 月 31 日。退款请联系《上海分店》。",
]


@pytest.mark.parametrize(
    ("answer", "swapped"),
    [
        ("Standard delivery takes 1 working day.", "1 working day"),
        ("Express delivery takes 3 to 5 working days.", "5 working days"),
        ("Delivery takes 1 working day.", "1 working day"),
        ("Returns are free within 14 days.", "14 days"),
        ("Refunds are paid within 30 days.", "30 days"),
        ("Express delivery takes 1 working day. Refunds are paid within 30 days.", "30 days"),
        ("Ask Omar Faris about returns until 31 January.", "Omar"),
        ("Ask Omar Faris about refunds until 31 January.", "January"),
        ("标准配送需要 1 个工作日。", "1 个工作日"),
        ("加急配送需要三至五个工作日。", "5个工作日"),
        ("14 天内可以免费退货。", "14 天"),
        ("退款在 30 天内支付。", "30 天"),
        ("退款请联系《北京仓库》。", "北京仓库"),
        ("退款请联系《上海分店》，截止日期是 1 月 31 日。", "31 日"),
    ],
)
def test_a_fact_of_another_sentence_is_refused(answer: str, swapped: str) -> None:
    grounding = check(answer, SHOP_ZH if "。" in answer else SHOP)
    assert not grounding.ok
    assert swapped in grounding.unsupported


@pytest.mark.parametrize(
    "answer",
    [
        "Standard delivery takes 3 to 5 business days.",
        "Express delivery takes 1 working day.",
        "Returns are free within thirty days.",
        "Refunds are paid within 14 days.",
        "Ask Omar Faris about refunds.",
        "标准配送需要三至五个工作日。",
        "加急配送需要一个工作日。",
        "退款在十四天内支付。",
        "退款请联系《上海分店》。",
        "30 天内可以免费退货。",
    ],
)
def test_a_fact_of_the_sentence_itself_is_supported(answer: str) -> None:
    grounding = check(answer, SHOP_ZH if "。" in answer else SHOP)
    assert grounding.ok, grounding


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_every_sentence_of_the_knowledge_base_supports_itself(
    locale: Locale, knowledge: Knowledge
) -> None:
    passages = [entry.answer for entry in knowledge.of(locale)]
    for number, passage in enumerate(passages):
        for sentence in words.sentences(passage):
            if words.content(sentence):
                grounding = check(sentence, passages[number:] + passages[:number])
                assert (grounding.ok, grounding.quotes) == (True, ((0, sentence),))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("It costs €4.90 until 31 January at most.", "It costs until at most."),
        ("5 个工作日内退款", "内退款"),
    ],
)
def test_a_text_without_its_quantities(text: str, rest: str) -> None:
    assert " ".join(facts.without_quantities(text).split()) == rest


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
