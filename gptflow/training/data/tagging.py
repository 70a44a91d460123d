"""Tags: IOB1, IOB2 and BIOES, told apart, checked, converted; and spans out of tags.

IOB1 (Ramshaw and Marcus 1995) writes B only between neighbours of one type, IOB2 at every
beginning, BIOES also marks the last token (E) and the only one (S); BILOU is BIOES with L and U.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["iob1", "iob2", "bioes"]
SCHEMES: tuple[Scheme, ...] = ("iob1", "iob2", "bioes")

_PREFIXES = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}

Extent = tuple[int, int, str]
"""First token, the token after the last, label."""


def complaint(tag: str) -> str | None:
    """What is wrong with a tag taken alone, or None."""
    if tag == "O":
        return None
    prefix, dash, label = tag.partition("-")
    if not dash or prefix not in _PREFIXES or not label:
        return f"{tag!r} is no tag: O, or B-, I-, E-, S- and a label"
    if label != "".join(label.split()):
        return f"the label of {tag!r} has blanks in it, and columns are parted by blanks"
    return None


def detect(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of a whole file; a file that fits both IOB1 and IOB2 is IOB2.

    In IOB2 no I begins a span. In IOB1 a B comes only after a span of its own type.
    """
    begins_with_i = begins_with_b = False
    for tags in sequences:
        before = "O"
        for tag in tags:
            prefix, _, label = tag.partition("-")
            if _PREFIXES.get(prefix) in ("E", "S"):
                return "bioes"
            inside = before != "O" and before.partition("-")[2] == label
            begins_with_i |= prefix == "I" and not inside
            begins_with_b |= prefix == "B" and not inside
            before = tag
    return "iob1" if begins_with_i and not begins_with_b else "iob2"


def to_iob2(tags: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """The tags in IOB2.

    Raises:
        ValueError: a sequence that the scheme does not allow; says which token and why.
    """
    out: list[str] = []
    before = "O"
    for number, tag in enumerate(tags, 1):
        prefix, _, label = tag.partition("-")
        prefix = _PREFIXES.get(prefix, prefix)
        before_prefix, _, before_label = before.partition("-")
        inside = before != "O" and before_label == label
        if scheme == "bioes":
            _check_bioes(number, tag, prefix, inside, before_prefix)
            out.append("O" if tag == "O" else f"{'B' if prefix in 'BS' else 'I'}-{label}")
        elif scheme == "iob2":
            if prefix == "I" and not inside:
                raise ValueError(f"token {number} is {tag} after {before}, which IOB2 begins by B-")
            out.append(tag)
        else:
            begins = tag != "O" and (prefix == "B" or not inside)
            out.append(tag if tag == "O" else f"{'B' if begins else 'I'}-{label}")
        before = tag if prefix == "O" else f"{prefix}-{label}"
    if scheme == "bioes" and before[:2] in ("B-", "I-"):
        raise ValueError(f"the last token is {before}, but BIOES ends a span by E-")
    return tuple(out)


def _check_bioes(number: int, tag: str, prefix: str, inside: bool, before_prefix: str) -> None:
    open_before = before_prefix in ("B", "I")
    if prefix in ("I", "E") and not (inside and open_before):
        raise ValueError(f"token {number} is {tag}, but no span of that label is open in BIOES")
    if prefix in ("B", "S", "O") and open_before:
        raise ValueError(f"token {number} is {tag}, but the span before it was not ended by E-")


def from_iob2(tags: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """Tags in IOB2 written in another scheme."""
    if scheme == "iob2":
        return tuple(tags)
    out = ["O"] * len(tags)
    previous: Extent | None = None
    for first, stop, label in spans_of(tags):
        touches = previous is not None and previous[1] == first and previous[2] == label
        for place in range(first, stop):
            prefix = "I"
            if scheme == "bioes":
                prefix = "S" if stop - first == 1 else {first: "B", stop - 1: "E"}.get(place, "I")
            elif place == first and touches:
                prefix = "B"
            out[place] = f"{prefix}-{label}"
        previous = (first, stop, label)
    return tuple(out)


def spans_of(tags: Sequence[str]) -> tuple[Extent, ...]:
    """The spans of tags in IOB2, strictly: an I that goes on with nothing is no span."""
    found: list[Extent] = []
    first, label = -1, ""
    for place, tag in enumerate((*tags, "O")):
        if first >= 0 and tag != f"I-{label}":
            found.append((first, place, label))
            first = -1
        if tag.startswith("B-"):
            first, label = place, tag[2:]
    return tuple(found)


def tags_of(spans: Iterable[Extent], count: int) -> tuple[str, ...]:
    """IOB2 tags of `count` tokens. Where spans overlap, the one that begins first is kept."""
    tags = ["O"] * count
    for first, stop, label in sorted(spans):
        if all(tag == "O" for tag in tags[first:stop]):
            tags[first:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - first - 1)]
    return tuple(tags)
