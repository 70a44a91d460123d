"""Personal data: found by form and check digit, beside Han characters too, and masked."""

from __future__ import annotations

import pytest

from gptflow.training.data.masking import masked
from gptflow.training.data.personal_data import count, mask
from gptflow.training.data.rows import Dialogue, LabelledText, Origin, TaggedText, Turn
from gptflow.training.data.tokens import align


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jo.doe+x@mail.example.co.uk, please", "email"),
        ("邮箱是jo@example.com谢谢", "email"),
        ("card 4111 1111 1111 1111", "card"),
        ("卡号5500005555555559。", "card"),
        ("amex 378282246310005", "card"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "iban"),
        ("DE89370400440532013000", "iban"),
        ("身份证11010519491231002X号", "prc_id"),
        ("手机13812345678", "phone"),
        ("call +86 138 1234 5678", "phone"),
        ("ring +44 20 7946 0958", "phone"),
        ("(555) 123-4567", "phone"),
        ("from 192.168.0.12 today", "ip_address"),
    ],
)
def test_what_is_personal_is_found_once_by_kind(text, kind):
    assert count(text) == {kind: 1}
    assert f"<{kind}>" in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112",  # not a card: its check digit is wrong
        "0000 0000 0000 0000",
        "GB82 WEST 1234 5698 7654 33",
        "110105194912310021",
        "version 1.2.3.400",
        "$AAPL up 3.14159265358979% to 1234567890",
        "a@b",
        "it costs 1,000,000.00",
    ],
)
def test_what_only_looks_like_it_is_left(text):
    assert count(text) == {}
    assert mask(text) == text


ORIGIN = Origin("a", 1)


def test_rows_are_masked_in_all_their_texts():
    row = LabelledText(origin=ORIGIN, text="jo@example.com wrote", labels={"label": "x"})
    assert masked(row).content == "<email> wrote"
    dialogue = Dialogue(origin=ORIGIN, turns=(Turn("user", "13812345678"), Turn("assistant", "ok")))
    assert masked(dialogue).content == "<phone>\nok"


def test_tags_stay_with_their_tokens():
    text, tokens = align(["mail", "jo@example.com", "Apple"])
    row = TaggedText(origin=ORIGIN, text=text, tokens=tokens, tags=("O", "B-MAIL", "B-ORG"))
    after = masked(row)
    assert after.words == ("mail", "<email>", "Apple")
    assert [span.text for span in after.spans] == ["<email>", "Apple"]
