"""Calibration: fits the scales of `matching` to a knowledge base, and measures the result.

    python -m gptflow_customer_service.calibration QUESTIONS.jsonl [KNOWLEDGE.jsonl]

Run it with questions of your own after changing the knowledge base, and copy the scales into
`matching.SCALES`. A row of the questions is `{"text", "locale", "topic", "split"}`: `topic` is
null for a question that the knowledge base does not answer, `split` is `calibration` (to fit)
or `test` (to measure, never fitted on).
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gptflow_customer_service.knowledge import LOCALES, Knowledge, Locale
from gptflow_customer_service.matching import CLOSE, GOOD, SCALES, WEAK, Match, Matcher, Scale


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    text: str
    locale: Locale
    topic: str | None
    split: str


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Measured on one language's questions. Shares are of the answerable questions.

    Attributes:
        first: the right entry is ranked first; `third`: it is among the first three.
        close: answered word for word; `close_right`: how many of those answers are right.
        good: close, or good enough to draft from; `good_right`: how many cite the right entry.
        stray: of the unanswerable questions, those answered all the same.
        dismissed: of the unanswerable questions, those with nothing worth offering.
    """

    answerable: int
    unanswerable: int
    first: float
    third: float
    close: float
    close_right: float
    good: float
    good_right: float
    stray: float
    dismissed: float


def read_questions(path: Path) -> list[Question]:
    """The rows of a questions file."""
    fields = [field.name for field in dataclasses.fields(Question)]
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return [Question(**{name: row[name] for name in fields}) for row in rows]


def fit(points: Sequence[tuple[float, bool]], rounds: int = 50) -> Scale:
    """Logistic regression of right or wrong on one score, by Newton's method.

    The slope is held by a unit Gaussian prior, so that separable points have a fit.
    """
    offset, slope = 0.0, 0.0
    for _ in range(rounds):
        g0 = g1 = h00 = h01 = 0.0
        h11 = 1.0
        g1 += slope
        for score, is_right in points:
            p = 1 / (1 + math.exp(-(offset + slope * score)))
            weight = p * (1 - p)
            g0 += p - is_right
            g1 += (p - is_right) * score
            h00 += weight
            h01 += weight * score
            h11 += weight * score * score
        determinant = h00 * h11 - h01 * h01
        offset -= (h11 * g0 - h01 * g1) / determinant
        slope -= (h00 * g1 - h01 * g0) / determinant
    return Scale(round(offset, 2), round(slope, 2))


def calibrate(knowledge: Knowledge, questions: Iterable[Question], locale: Locale) -> Scale:
    """Fit one language's scale on its stored questions, each left out in turn, and on the
    questions of the calibration split."""
    points = list(_left_out(knowledge, locale))
    matcher = Matcher(knowledge)
    for question in questions:
        if question.locale == locale and question.split == "calibration":
            points += _point(matcher, question.text, locale, question.topic)
    return fit(points)


def measure(matcher: Matcher, questions: Iterable[Question], locale: Locale) -> Figures:
    """What a matcher makes of one language's questions."""
    asked = [question for question in questions if question.locale == locale]
    found = [(question.topic, matcher.match(question.text, locale)) for question in asked]
    known = [(topic, matches) for topic, matches in found if topic is not None]
    unknown = [matches for topic, matches in found if topic is None]

    def surer(level: float) -> list[bool]:
        return [m[0].entry.topic == topic for topic, m in known if _top(m) >= level]

    close, good = surer(CLOSE), surer(GOOD)
    return Figures(
        answerable=len(known),
        unanswerable=len(unknown),
        first=_share(topic in _topics(matches[:1]) for topic, matches in known),
        third=_share(topic in _topics(matches[:3]) for topic, matches in known),
        close=len(close) / max(1, len(known)),
        close_right=_share(close),
        good=len(good) / max(1, len(known)),
        good_right=_share(good),
        stray=_share(_top(matches) >= GOOD for matches in unknown),
        dismissed=_share(_top(matches) < WEAK for matches in unknown),
    )


def _left_out(knowledge: Knowledge, locale: Locale) -> Iterator[tuple[float, bool]]:
    entries = [entry for each in LOCALES for entry in knowledge.of(each)]
    for entry in knowledge.of(locale):
        for left_out in entry.questions:
            rest = [question for question in entry.questions if question != left_out]
            if rest:
                fewer = entry.model_copy(update={"question": rest[0], "paraphrases": rest[1:]})
                others = [fewer if other.id == entry.id else other for other in entries]
                yield from _point(Matcher(Knowledge(others)), left_out, locale, entry.topic)


def _point(
    matcher: Matcher, text: str, locale: Locale, topic: str | None
) -> list[tuple[float, bool]]:
    matches = matcher.match(text, locale)
    return [(matches[0].score, matches[0].entry.topic == topic)] if matches else []


def _top(matches: Sequence[Match]) -> float:
    return matches[0].confidence if matches else 0.0


def _topics(matches: Sequence[Match]) -> list[str]:
    return [match.entry.topic for match in matches]


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def main() -> None:
    questions = read_questions(Path(sys.argv[1]))
    shipped = Path(__file__).with_name("knowledge.jsonl")
    knowledge = Knowledge.load(Path(sys.argv[2]) if len(sys.argv) > 2 else shipped)
    for locale in LOCALES:
        print(locale, "fitted", calibrate(knowledge, questions, locale), "used", SCALES[locale])
    matcher = Matcher(knowledge)
    test = [question for question in questions if question.split == "test"]
    for name, chosen in (("test", test), ("all", questions)):
        for locale in LOCALES:
            figures = dataclasses.asdict(measure(matcher, chosen, locale))
            print(locale, name, {key: round(value, 3) for key, value in figures.items()})


if __name__ == "__main__":
    main()
