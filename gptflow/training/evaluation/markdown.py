"""Markdown: the report as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gptflow.training.evaluation.summary import ClassRow, Report

_MOST_CONFUSED = 15


def render(report: Report) -> str:
    """The page, ending in a newline."""
    return "\n".join(_lines(report)).rstrip("\n") + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {report.title}"
    yield ""
    yield f"{report.rows} test rows; 95 % intervals by bootstrap over them."
    yield from _verdict(report)
    yield from _section("Figures")
    names = list(report.floors)
    rows = [
        [
            f"**{metric}**" if metric == report.primary else metric,
            str(figure),
            *(str(report.floors[name][metric]) for name in names),
        ]
        for metric, figure in report.metrics.items()
        if all(metric in report.floors[name] for name in names)
    ]
    yield from _table(["", "model", *names], rows)
    if report.calibration is not None:
        found = report.calibration
        yield from _section("Calibration")
        yield from _table(
            ["", "as it is", f"temperature {found.temperature:.3f}"],
            [
                ["expected calibration error", f"{found.ece_before:.4f}", f"{found.ece:.4f}"],
                ["negative log-likelihood", f"{found.nll_before:.4f}", f"{found.nll:.4f}"],
            ],
        )
    for title, classes in (
        ("Per class" if report.kind == "labels" else "Per type, whole spans", report.classes),
        ("Tokens, with O", report.tokens),
        ("Tokens, without O", report.tokens_without_o),
    ):
        if classes:
            yield from _section(title)
            yield from _class_table(classes)
    yield from _confused(report)
    if report.slices:
        yield from _section(f"Slices ({report.primary})")
        yield from _table(
            ["by", "", "rows", "model", report.best_floor or "floor"],
            [
                [part.by, part.name, str(part.rows), _number(part.value), _number(part.floor)]
                for part in report.slices
            ],
        )
    if report.worst:
        yield from _section("The worst errors")
        yield from _table(
            ["where", "right", "answer", "score", "text"],
            [[w.where, w.right, w.answer, f"{w.score:.3g}", w.text] for w in report.worst],
        )


def _verdict(report: Report) -> Iterator[str]:
    against = report.against_floor
    if against is None:
        return
    winner = f"**The floor wins: {against.floor}.**" if report.floor_wins else "The model wins."
    yield ""
    yield (
        f"{winner} {against.metric} minus that of {against.floor}: {against.difference}, "
        f"p = {against.p:.3f}."
    )


def _confused(report: Report) -> Iterator[str]:
    if report.confusion is None:
        return
    labels = (*report.confusion.labels, "(another)")
    pairs = sorted(
        (
            (-count, right, answer)
            for right, line in enumerate(report.confusion.counts)
            for answer, count in enumerate(line)
            if right != answer and count
        )
    )[:_MOST_CONFUSED]
    if pairs:
        yield from _section("Taken for another")
        yield from _table(
            ["right", "answer", "rows"],
            [[labels[right], labels[answer], str(-count)] for count, right, answer in pairs],
        )


def _class_table(classes: Iterable[ClassRow]) -> Iterator[str]:
    return _table(
        ["", "precision", "recall", "F1", "support"],
        [
            [c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support)]
            for c in classes
        ],
    )


def _section(title: str) -> Iterator[str]:
    yield from ("", f"## {title}", "")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(columns)
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[str]) -> str:
    # A text may hold what ends a cell, a row, or begins markup of its own.
    return "| " + " | ".join(" ".join(_escape(cell).split()) for cell in cells) + " |"


def _escape(text: str) -> str:
    for special, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`")):
        text = text.replace(special, safe)
    return text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
