"""Perturbation: the same rows as people who mistype, or who use other words, would write them.

Typos are made inside words of four letters or more, whose first letter stays: two letters swapped,
one left out, one doubled, or a neighbour on the keyboard in its place (Belinkov and Bisk 2018,
"Synthetic and Natural Noise Both Break Neural Machine Translation"; Pruthi et al. 2019, "Combating
Adversarial Misspellings with Robust Word Recognition"). Synonyms come from a table of words that
may stand for each other; `synonyms.json` beside this module is a small one of common English words,
written for this project.

Only words of Latin letters are changed; links, `@names`, `#tags` and `$TICKERS` never are. What a
text becomes depends on the seed and the text alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from gptflow.errors import InvalidInput
from gptflow.training.data.rows import (
    Dialogue,
    LabelledText,
    Row,
    ScoredPair,
    TaggedText,
    Token,
    Turn,
)

RowT = TypeVar("RowT", bound=Row)

Synonyms = Mapping[str, Sequence[str]]
"""By word in lower case, what may stand in its place."""

Change = Callable[[str, random.Random], str]
"""A word, and what becomes of it: the same where nothing does."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_KEPT = re.compile(r"(?:https?://|www\.|[@#$])\S+")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ'’]+")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHORTEST = 4


def typo(word: str, generator: random.Random) -> str:
    """One slip of the fingers in a word; none in a short one."""
    if len(word) < _SHORTEST or not _LATIN.fullmatch(word):
        return word
    for _ in range(8):  # a swap of two equal letters is none
        place = generator.randrange(1, len(word) - 1)
        slip = generator.choice(("swap", "drop", "double", "neighbour"))
        letter = word[place]
        if slip == "swap":
            made = word[:place] + word[place + 1] + letter + word[place + 2 :]
        elif slip == "drop":
            made = word[:place] + word[place + 1 :]
        elif slip == "double":
            made = word[:place] + letter + word[place:]
        else:
            near = _neighbours().get(letter.lower(), letter)
            key = generator.choice(near)
            made = word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :]
        if made != word:
            return made
    return word


def synonym(table: Synonyms) -> Change:
    """Other words for those in a table, written as the word was: large letters or small."""

    def change(word: str, generator: random.Random) -> str:
        others = table.get(word.lower())
        if not others:
            return word
        chosen = generator.choice(others)
        if word.isupper() and len(word) > 1:
            return chosen.upper()
        return chosen[0].upper() + chosen[1:] if word[0].isupper() else chosen

    return change


def load_synonyms(path: Path | None = None) -> Synonyms:
    """A table of synonyms: a JSON list of groups of words that may stand for each other.

    Args:
        path: by default the small one that comes with this module.

    Raises:
        InvalidInput: the file is no such list.
    """
    try:
        if path is None:
            text = resources.files(__package__).joinpath("synonyms.json").read_text("utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        groups = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise InvalidInput(f"{path} cannot be read: {reason}.") from None
    table: dict[str, list[str]] = {}
    fits = isinstance(groups, list) and all(
        isinstance(group, list) and all(isinstance(w, str) and w.strip() for w in group)
        for group in groups
    )
    if not fits:
        raise InvalidInput(
            f"{path} is no list of groups of words.",
            hint='It should look like `[["buy", "purchase"], ["big", "large", "huge"]]`.',
        )
    for group in groups:
        for word in group:
            known = table.setdefault(word.lower(), [])
            known += [o for o in group if o.lower() != word.lower() and o not in known]
    return {word: tuple(others) for word, others in table.items() if others}


@dataclasses.dataclass(frozen=True, slots=True)
class Perturbed:
    """Rows as they have become, in the same order.

    Attributes:
        changed: how many are not as they were.
        words: how many words of all rows are not.
    """

    rows: tuple[Any, ...]
    changed: int
    words: int


def perturb(rows: Iterable[RowT], change: Change, *, share: float, seed: int = 0) -> Perturbed:
    """Change a share of the words that can be changed, at least one of a row that has any.

    Labels stay, and spans move with their words. Of dialogues, what the user says is changed; of
    scored pairs, the query, alike for all its candidates.

    Args:
        share: of the words that can be changed, per row.
    """
    made: list[Any] = []
    changed = words = 0
    for row in rows:
        other, count = _changed(row, change, share, seed)
        made.append(other)
        changed += bool(count)
        words += count
    return Perturbed(tuple(made), changed, words)


def _changed(row: Row, change: Change, share: float, seed: int) -> tuple[Row, int]:
    if isinstance(row, TaggedText):
        return _tagged(row, change, share, seed)
    if isinstance(row, LabelledText):
        text, count = _text(row.text, change, share, seed)
        return dataclasses.replace(row, text=text), count
    if isinstance(row, ScoredPair):
        text, count = _text(row.query, change, share, seed)
        return dataclasses.replace(row, query=text), count
    if isinstance(row, Dialogue):
        turns, total = [], 0
        for turn in row.turns:
            if turn.role == "user":
                text, count = _text(turn.text, change, share, seed)
                turn, total = Turn(turn.role, text), total + count
            turns.append(turn)
        return dataclasses.replace(row, turns=tuple(turns)), total
    return row, 0


def _text(text: str, change: Change, share: float, seed: int) -> tuple[str, int]:
    kept = [match.span() for match in _KEPT.finditer(text)]
    places = [
        match.span()
        for match in _WORD.finditer(text)
        if not any(start <= match.start() < end for start, end in kept)
    ]
    words = [text[start:end] for start, end in places]
    found = _choose(words, change, share, _generator(text, seed))
    for number in sorted(found, reverse=True):
        start, end = places[number]
        text = text[:start] + found[number] + text[end:]
    return text, len(found)


def _tagged(row: TaggedText, change: Change, share: float, seed: int) -> tuple[TaggedText, int]:
    words = [
        word if _WORD.fullmatch(word) and row.text[max(0, token.start - 1)] not in "@#$" else ""
        for word, token in zip(row.words, row.tokens, strict=True)
    ]
    found = _choose(words, change, share, _generator(row.text, seed))
    found = {number: word for number, word in found.items() if " " not in word}
    pieces: list[str] = []
    tokens: list[Token] = []
    at = length = 0
    for number, token in enumerate(row.tokens):
        word = found.get(number, row.text[token.start : token.end])
        pieces += [row.text[at : token.start], word]
        length += token.start - at
        tokens.append(Token(length, length + len(word)))
        length += len(word)
        at = token.end
    text = "".join([*pieces, row.text[at:]])
    return dataclasses.replace(row, text=text, tokens=tuple(tokens)), len(found)


def _choose(
    words: Sequence[str], change: Change, share: float, generator: random.Random
) -> dict[int, str]:
    """By the number of a word, what it becomes."""
    possible = {}
    for number, word in enumerate(words):
        if word and (other := change(word, generator)) != word:
            possible[number] = other
    count = min(len(possible), max(1, round(share * len(possible))))
    chosen = generator.sample(sorted(possible), count)
    return {number: possible[number] for number in chosen}


def _generator(text: str, seed: int) -> random.Random:
    return random.Random(f"{seed}/{text}")  # noqa: S311


@functools.cache
def _neighbours() -> dict[str, str]:
    """By key, those beside it, and above and below it."""
    near: dict[str, str] = {}
    for y, row in enumerate(_KEYS):
        for x, key in enumerate(row):
            # Each row of keys stands half a key to the right of the one above.
            spots = ((y, x - 1), (y, x + 1), (y - 1, x), (y - 1, x + 1), (y + 1, x - 1), (y + 1, x))
            near[key] = "".join(
                _KEYS[v][u] for v, u in spots if 0 <= v < len(_KEYS) and 0 <= u < len(_KEYS[v])
            )
    return near
