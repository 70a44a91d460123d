"""Cues: what is plain from the words alone, so that no model is asked.

A person asked for, a greeting, thanks, a goodbye, anger, and the number of an option. Rules
decide these in both languages, because each one decides what happens next.
"""

from __future__ import annotations

import re
from typing import Literal

from gptflow_customer_service import words

Social = Literal["greeting", "thanks", "goodbye"]

_PERSON = r"(?:human|person|someone|somebody|agent|representative|operator|member of staff)"
_STAFF = r"(?:human|agent|representative|operator)"
_HUMAN = re.compile(
    rf"\b(?:talk|speak|chat)\b[^.!?]{{0,30}}\b{_PERSON}\b"
    rf"|\b(?:connect|transfer|put) me\b|\b(?:real|live|actual) {_PERSON}\b"
    rf"|\b(?:want|need|get me|give me|like)\b[^.!?]{{0,12}}\b{_STAFF}\b"
    rf"|^\W*(?:an? )?{_STAFF}(?: please)?\W*$"
    r"|转(?:到|接)?(?:人工|客服)|人工(?:客服|服务|坐席)|真人|^\W*人工\W*$"
    r"|(?:要|找|接|叫)(?:个|一个)?(?:人工|客服(?!电话|邮箱))"
    r"|(?:和|跟|与|同)(?:真?人|客服|工作人员|你们的人)[^。！？]{0,4}(?:说|聊|谈|讲|沟通)",
)
_NOT_HUMAN = re.compile(
    rf"\b(?:not|n[o']t|without|no need)\b[^.!?]{{0,25}}\b{_PERSON}\b"
    r"|(?:不要|不想|不用|无需|别)[^。！？]{0,4}(?:人工|客服|真人)",
)

_SOCIAL: dict[Social, re.Pattern[str]] = {
    "goodbye": re.compile(
        r"(?:ok(?:ay)? |no )?(?:good ?)?bye(?: ?bye| now)?|see you(?: later| soon)?"
        r"|(?:no )?(?:that s|thats|that is|that was) (?:all|it|everything)(?: for (?:now|today))?"
        r"|(?:no )?nothing else|have a (?:nice|good|great) (?:day|evening|weekend|one)"
        r"|再见|拜拜|回见|下次见|就这样(?:吧)?"
        r"|(?:暂时)?没(?:有)?(?:其他|其它|别的|什么)?(?:问题|事)?了"
    ),
    "thanks": re.compile(
        r"(?:(?:ok|okay|no|great|perfect|super|cool|got it|yes) )*"
        r"(?:many )?(?:thanks|thank you|thx|cheers)"
        r"(?: (?:a lot|so much|very much|a million|again|you"
        r"|for (?:your|the|all the) (?:help|information|answer)))*"
        r"|(?:that )?(?:helped|helps)|great|perfect|got it|ok|okay"
        r"|(?:好的?|嗯|行|可以|明白了?|知道了?|懂了)*(?:非常|太|十分|真的)?"
        r"(?:谢谢|多谢|感谢|谢啦|谢了|辛苦了)(?:你们?|您|啦|了|哦|的?帮助)*"
        r"|好的?|明白了?|知道了?|懂了"
    ),
    "greeting": re.compile(
        r"(?:hi|hello|hey|hiya|greetings|good (?:morning|afternoon|evening|day))"
        r"(?: (?:there|all|team|again|everyone))?"
        r"|(?:你|您)(?:们)?好[啊呀]?|嗨|哈喽|哈啰|(?:早上|上午|中午|下午|晚上)好|在吗|有人吗"
    ),
}

_FILLER = re.compile(r"no|yes|well|so|嗯+|哦|不")
"""Said beside a courtesy it adds nothing; alone it is no courtesy."""

_ANGER = re.compile(
    r"\b(?:useless|ridiculous|terrible|awful|horrible|worst|unacceptable|angry|furious|pathetic"
    r"|disgusting|fed up|waste of time|stupid|idiots?|damn|shit|fuck\w*|bullshit)\b"
    r"|垃圾|太差|差劲|气死|烦死|什么破|废物|没用|无语|受够|糟糕透|忍无可忍|他妈|傻[逼叉]"
)

_ORDINALS = tuple(
    re.compile(
        rf"(?:the |option |number |no )*(?:{latin})(?: (?:one|option))?|[选第]?[{han}][个项号]?"
    )
    for latin, han in (("1|first|one", "1一"), ("2|second|two", "2二"), ("3|third|three", "3三"))
)


def asks_for_person(text: str) -> bool:
    """Whether the customer asks for a human being in so many words."""
    text = words.normalise(text)
    return bool(_HUMAN.search(text)) and not _NOT_HUMAN.search(text)


def social(text: str) -> Social | None:
    """Which courtesy the message is, if it is nothing else; a goodbye outweighs thanks."""
    parts = [plain for part in words.clauses(text) if (plain := _plain(part))]
    kinds = [_courtesy(part) for part in parts if not _FILLER.fullmatch(part)]
    if not kinds or None in kinds:
        return None
    return next(kind for kind in _SOCIAL if kind in kinds)


def is_angry(text: str) -> bool:
    """Whether the customer is upset, by the words used."""
    return bool(_ANGER.search(words.normalise(text)))


def ordinal(text: str) -> int | None:
    """Which option, counted from 0, a message such as `the second one` or 第二个 picks."""
    plain = _plain(text)
    return next((n for n, one in enumerate(_ORDINALS) if one.fullmatch(plain)), None)


def _courtesy(part: str) -> Social | None:
    return next((kind for kind, pattern in _SOCIAL.items() if pattern.fullmatch(part)), None)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", words.normalise(text)).strip()
