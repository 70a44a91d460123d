"""What a run has measured: medians, ratios, a Markdown table and a picture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptflow.engine.bench import Kind

UNITS: Mapping[Kind, str] = {
    "label": "requests/s",
    "mixed": "output tokens/s",
    "single": "output tokens/s",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One engine's turn at a workload.

    Attributes:
        rate: in the workload's unit.
        first: the first token of each answer.
    """

    engine: str
    kind: Kind
    number: int
    requests: int
    seconds: float
    rate: float
    first: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One engine at one workload.

    Attributes:
        ratio: how many times faster the reference was, the median over the rounds.
        same_first: share of requests whose first token is the reference's: low precision
            and ties cost a few percent; a wrong model nearly all.
    """

    engine: str
    kind: Kind
    requests: int
    median: float
    low: float
    high: float
    ratio: float | None
    same_first: float | None


def summarise(rounds: Sequence[Round], reference: str) -> list[Row]:
    """The rows, by workload, the fastest engine first."""
    ours = {(r.kind, r.number): r for r in rounds if r.engine == reference}
    rows = []
    for kind, engine in dict.fromkeys((r.kind, r.engine) for r in rounds):
        own = [r for r in rounds if (r.kind, r.engine) == (kind, engine)]
        rates = [r.rate for r in own]
        pairs = [(ours[kind, r.number], r) for r in own if (kind, r.number) in ours]
        tokens = [t for our, r in pairs for t in zip(our.first, r.first, strict=False)]
        rows.append(
            Row(
                engine=engine,
                kind=kind,
                requests=own[0].requests,
                median=statistics.median(rates),
                low=min(rates),
                high=max(rates),
                ratio=statistics.median(our.rate / r.rate for our, r in pairs) if pairs else None,
                same_first=sum(a == b for a, b in tokens) / len(tokens) if tokens else None,
            )
        )
    order = list(UNITS)
    return sorted(rows, key=lambda row: (order.index(row.kind), -row.median))


def markdown(rows: Iterable[Row], facts: Mapping[str, Any]) -> str:
    """The report as a page."""
    machine, reference = facts["machine"], facts["reference"]
    lines = [
        f"# Engines side by side, {machine['date']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['flags'])}; "
        f"copy {machine['copy_gb_s']} GB/s. Model {facts['model']}. {facts['rounds']} rounds in "
        "turn, new token ids each round, greedy, to full length. Median (lowest to highest); "
        f"the ratio is {reference} over the other within a round, then the median.",
    ]
    rows = list(rows)
    for kind, unit in UNITS.items():
        of_kind = [row for row in rows if row.kind == kind]
        if not of_kind:
            continue
        lines += [
            "",
            f"## {kind}",
            "",
            f"| engine | requests | {unit} | {reference} is faster by | same first token |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row.engine} | {row.requests} | {row.median:.1f} ({row.low:.1f}–{row.high:.1f}) "
            f"| {_or_dash(row.ratio, '.2f')} | {_or_dash(row.same_first, '.0%')} |"
            for row in of_kind
        ]
    lines += [
        "",
        "## Versions",
        "",
        "| engine | version | settings | loads in |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {engine['version']} | "
        f"{', '.join(f'{k} {v}' for k, v in engine['settings'].items())} "
        f"| {engine['load_seconds']} s |"
        for name, engine in facts["engines"].items()
    ]
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in facts["failed"].items()]
    lines += ["", "## GEMM, GFLOP/s by rows", ""]
    rates: Mapping[str, Mapping[int, float]] = machine["gemm_gflop_s"]
    columns = list(next(iter(rates.values())))
    lines += [f"| | {' | '.join(map(str, columns))} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in rates.items()]
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row], reference: str, path: Path) -> None:
    """Bars of the medians, a panel for each workload, with the lowest and highest round.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in UNITS if any(row.kind == kind for row in rows)]
    most = max(sum(row.kind == kind for row in rows) for kind in kinds)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(5 * len(kinds), 1.2 + 0.4 * most), squeeze=False, layout="tight"
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        own = [row for row in rows if row.kind == kind][::-1]
        medians = [row.median for row in own]
        spread = [[r.median - r.low for r in own], [r.high - r.median for r in own]]
        colours = ["tab:blue" if row.engine == reference else "lightgrey" for row in own]
        bars = panel.barh([row.engine for row in own], medians, xerr=spread, color=colours)
        panel.bar_label(bars, fmt="%.1f", padding=3)
        panel.set_title(f"{kind}: {UNITS[kind]}")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.18)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
