"""What is read from a message alone: words, language, cues, personal data."""

from __future__ import annotations

import pytest

from gptflow_customer_service import cues, language, words
from gptflow_customer_service.personal_data import luhn, mask


def test_sentences_are_kept_word_for_word() -> None:
    text = "It costs 4.90 euros. 真的！是吗？ See help@shop.example."
    assert words.sentences(text) == [
        "It costs 4.90 euros.",
        "真的！",
        "是吗？",
        "See help@shop.example.",
    ]


@pytest.mark.parametrize(
    ("text", "locale"),
    [
        ("Where is my order?", "en"),
        ("我的订单什么时候到？", "zh"),
        ("我的 order 什么时候到？", "zh"),
        ("Where is my 快递 please?", "en"),
        ("😀 123", None),
        ("مرحبا", None),
        ("Ｗｈｅｒｅ ｉｓ ｉｔ", "en"),
    ],
)
def test_the_language_is_that_of_most_words(text: str, locale: str | None) -> None:
    assert language.detect(text) == locale


def test_a_message_without_words_takes_the_language_of_the_one_before() -> None:
    assert language.settle("123", None, "zh") == "zh"
    assert language.settle("123", None) == "en"
    assert language.settle("你好", "en") == "en"


@pytest.mark.parametrize("text", ["注文はいつ届きますか", "Где мой заказ?", "אני רוצה נציג"])
def test_other_scripts_are_foreign(text: str) -> None:
    assert language.is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "I want to talk to a human",
        "Can I speak with a real person please?",
        "agent",
        "Connect me to customer service",
        "转人工",
        "我要人工客服",
        "我想跟真人说话",
        "帮我找个客服",
    ],
)
def test_asking_for_a_person_is_heard(text: str) -> None:
    assert cues.asks_for_person(text)


@pytest.mark.parametrize(
    "text",
    [
        "I do not want to talk to a person",
        "不要转人工",
        "客服电话是多少？",
        "人工智能是什么",
        "Someone took my parcel",
        "How do I transfer money to a person?",
        "How do I book an appointment with an adviser?",
    ],
)
def test_what_only_mentions_people_does_not_ask_for_one(text: str) -> None:
    assert not cues.asks_for_person(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Hi there!", "greeting"),
        ("您好", "greeting"),
        ("Thanks a lot, bye", "goodbye"),
        ("好的，谢谢您", "thanks"),
        ("没有其他问题了", "goodbye"),
        ("No, that's all. Thank you!", "goodbye"),
        ("Thanks, and when does it arrive?", None),
        ("你好，我的卡丢了", None),
        ("", None),
    ],
)
def test_a_courtesy_is_one_only_if_nothing_else_is_said(text: str, kind: str | None) -> None:
    assert cues.social(text) == kind


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 1),
        ("the first one", 0),
        ("第三个", 2),
        ("选一", 0),
        ("one more thing", None),
        ("", None),
    ],
)
def test_an_option_is_picked_by_its_number(text: str, number: int | None) -> None:
    assert cues.ordinal(text) == number


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("卡号4111111111111111谢谢", "卡号<card>谢谢"),
        ("card 4111-1111-1111-1111.", "card <card>."),
        ("order 4111111111111112", "order 4111111111111112"),
        ("电话13812345678，邮箱a.b@c-d.example。", "电话<chinese_mobile>，邮箱<email>。"),
        ("+86 138 1234 5678", "<chinese_mobile>"),
        ("call +44 20 7946 0958 now", "call <phone> now"),
        ("(555) 555-0142", "<phone>"),
        ("0000000000000000", "0000000000000000"),
        ("between 2023 and 2024, 12 345 orders", "between 2023 and 2024, 12 345 orders"),
    ],
)
def test_personal_data_is_masked_and_look_alikes_are_not(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


def test_personal_data_is_counted_by_kind() -> None:
    _, counts = mask("a@b.example c@d.example 13812345678")
    assert counts == {"email": 2, "chinese_mobile": 1}


def test_the_luhn_digit_is_checked() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
