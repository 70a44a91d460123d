"""Facts: what in a sentence may not be changed: amounts, periods, dates, names, addresses.

Every fact has a canonical form, so that `1,000 euros`, `€1000` and `１０００ 欧元` are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from gptflow_customer_service import words

_UNITS = {
    "%": r"%|percent\b|per cent\b",
    "EUR": r"€|euros?\b|eur\b|欧元",
    "USD": r"\$|dollars?\b|usd\b|美元",
    "GBP": r"£|pounds?\b|gbp\b|英镑",
    "CNY": r"¥|yuan\b|rmb\b|cny\b|人民币|元",
    "working day": r"(?:working|business)[ -]days?\b|个?工作日",
    "day": r"(?:calendar )?days?\b|天|日(?!期)",
    "hour": r"hours?\b|h\b|个?小时",
    "minute": r"minutes?\b|min\b|分钟",
    "second": r"seconds?\b|秒",
    "week": r"weeks?\b|周|个?星期",
    "month": r"(?:monthly )?(?:months?|instal+ments?)\b|个月|期",
    "month of the year": r"月",
    "year": r"-?years?\b|年",
    "character": r"characters?\b|个?字符|位|字",
}
_UNIT = "|".join(f"(?P<u{n}>{pattern})" for n, pattern in enumerate(_UNITS.values()))
_UNIT_AFTER = re.compile(rf"\s*-?(?:{_UNIT})")
_RANGE = re.compile(r"\s*(?:to|or|and|until|-|–|—|~|至|到|或)\s*(?=\d)")
_SIGN_BEFORE = re.compile(r"(?:[€$£¥]|EUR|USD|GBP|CNY)\s*$", re.IGNORECASE)
_SIGNS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "CNY"}

_THOUSANDS = re.compile(r"(?<=\d)[,'\u00a0\u202f](?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(?<![A-Za-z\d.])\d+(?::\d{2}|\.\d+)?(?![A-Za-z]*\d)")
_SMALL = "two three four five six seven eight nine ten eleven twelve"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(_SMALL.split(), start=2)},
    **{word: str(10 * value) for value, word in enumerate(_TENS.split(), start=2)},
}
"""`one` is left out: it is a pronoun more often than a number."""
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)
_HAN_NUMBER = re.compile(
    r"(?:[一二两三四五六七八九]?十[一二三四五六七八九]?|[一二两三四五六七八九])"
    r"(?=个?(?:工作日|小时|星期|月)|[天日周年秒期位]|分钟|欧元|美元|元|[至到][一二三四五六七八九十])"
)
_HAN_PERCENT = re.compile(r"百分之(\d+(?:\.\d+)?)")
_HAN_DIGITS = {digit: value for value, digit in enumerate("一二三四五六七八九", start=1)} | {
    "两": 2
}

_YEAR = "january february march april may june july august september october november december"
_MONTHS = {name: number for number, name in enumerate(_YEAR.split(), start=1)}
_MONTH = re.compile(rf"\b(?:{'|'.join(name.capitalize() for name in _MONTHS)})\b")

_ADDRESS = re.compile(r"(?:https?://|www\.)[^\s，。；、<>]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_QUOTED = re.compile(r"《([^》]+)》|“([^”]+)”|「([^」]+)」|\"([^\"]+)\"")
_CODE = re.compile(
    r"(?<![A-Za-z0-9])(?=[A-Za-z-]*\d)(?=[\d-]*[A-Za-z])[A-Za-z0-9-]{2,}(?![A-Za-z0-9])"
)
_NAME = re.compile(r"(?<![A-Za-z])[A-Z][A-Za-z'’]+")


def quantities(text: str) -> dict[str, str]:
    """Canonical form, `number` or `number unit`, of every number -> how it is written."""
    text = _digits(text)
    return {canonical: text[start:end].strip() for canonical, start, end in _quantities(text)}


def without_quantities(text: str) -> str:
    """The text with a space in place of every number and its unit."""
    text = _digits(text)
    kept: list[str] = []
    place = 0
    for _, start, end in sorted(_quantities(text), key=lambda quantity: quantity[1]):
        kept.append(text[place:start])
        place = end
    return " ".join((*kept, text[place:]))


def names(text: str) -> Iterator[str]:
    """Capitalised words, quoted titles, codes, web and email addresses, as they are written.

    A word at the start of a sentence counts too, unless it is a stop word.
    """
    text = unicodedata.normalize("NFKC", text)
    for match in _ADDRESS.finditer(text):
        yield match[0].rstrip(".,")
    text = _ADDRESS.sub(" ", text)
    for match in _QUOTED.finditer(text):
        yield next(group for group in match.groups() if group)
    yield from _CODE.findall(text)
    for name in _NAME.findall(text):
        if name.casefold() not in words.ENGLISH_STOP_WORDS and name.casefold() not in _MONTHS:
            yield name


def _quantities(text: str) -> Iterator[tuple[str, int, int]]:
    """The canonical form of every number in a text of plain digits, and where it stands."""
    for match in _NUMBER.finditer(text):
        unit, start, end = _unit(text, match)
        value = match[0].rstrip("0").rstrip(".") if "." in match[0] else match[0]
        yield f"{value} {unit}".strip(), start, end
    for match in _MONTH.finditer(text):
        yield f"{_MONTHS[match[0].lower()]} month of the year", match.start(), match.end()


def _digits(text: str) -> str:
    """Every way to write a number turned into plain ASCII digits."""
    text = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text))
    text = _NUMBER_WORD.sub(lambda match: _NUMBER_WORDS[match[0].lower()], text)
    text = _HAN_NUMBER.sub(lambda match: str(_han_value(match[0])), text)
    return _HAN_PERCENT.sub(r"\1%", text)


def _han_value(digits: str) -> int:
    tens, ten, ones = digits.rpartition("十")
    return (_HAN_DIGITS.get(tens, 1) * 10 if ten else 0) + _HAN_DIGITS.get(ones, 0)


def _unit(text: str, number: re.Match[str]) -> tuple[str, int, int]:
    """The unit of a number, and from where to where the two stand.

    `3 to 5 days` gives both numbers their unit.
    """
    start, end = number.span()
    if sign := _SIGN_BEFORE.search(text[:start]):
        return _SIGNS.get(sign[0].strip(), sign[0].strip().upper()), sign.start(), end
    if unit := _UNIT_AFTER.match(text, end):
        group = next(n for n in range(len(_UNITS)) if unit[f"u{n}"])
        return list(_UNITS)[group], start, unit.end()
    if (gap := _RANGE.match(text, end)) and (second := _NUMBER.match(text, gap.end())):
        return _unit(text, second)[0], start, end
    return "", start, end
