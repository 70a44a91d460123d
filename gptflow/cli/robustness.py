"""`gptflow robustness`: how far an adapter's figures fall when people mistype."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Number, Session, json_option, note, print_json, print_table
from gptflow.cli.sources import source_options

if TYPE_CHECKING:
    from gptflow.training.data.source import Source

CHANGES = ("typos", "synonyms")


@click.command(short_help="Measure an adapter on misspelt texts.")
@click.argument("adapter")
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Test rows.",
)
@click.option("--against", metavar="ADAPTER", help="Another one, which it is compared with.")
@click.option(
    "--change",
    "changes",
    multiple=True,
    type=click.Choice(CHANGES),
    help="[default: both]",
)
@click.option(
    "--synonyms",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON: a list of groups of words.  [default: a small one of English]",
)
@click.option(
    "--share", type=Number("number", least=0, above=True), default=0.2, show_default=True,
    help="Of a text's words.",
)  # fmt: skip
@click.option("--figure", help="Such as accuracy.  [default: that which the head is judged by]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@source_options
@json_option
@click.pass_obj
def robustness(
    session: Session,
    adapter: str,
    data: tuple[Path, ...],
    against: str | None,
    changes: tuple[str, ...],
    synonyms: Path | None,
    share: float,
    figure: str | None,
    seed: int,
    kind: Any,
    source: Source,
    as_json: bool,
) -> int:
    """Measure ADAPTER on test rows as they are, with typos, and with other words.

    With --against, the two are compared; the exit code is 13 if ADAPTER is worse on the clean rows
    by more than half a point.
    """
    from gptflow.cli.training_run import ready
    from gptflow.errors import GateMissed
    from gptflow.models import ModelStore
    from gptflow.models.adapter_store import AdapterStore
    from gptflow.training.answering import AdapterAnswers
    from gptflow.training.data.reading import guess_kind, read_many
    from gptflow.training.evaluation import perturbation
    from gptflow.training.evaluation import robustness as judged
    from gptflow.training.parent import Parent

    if share > 1:
        raise click.UsageError("--share is at most 1.")
    table = perturbation.synonym(perturbation.load_synonyms(synonyms))
    ways = {"typos": perturbation.typo, "synonyms": table}
    settings = session.settings()
    model = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    store = AdapterStore(settings.adapters_dir)
    found = [Parent.find(store, name, model) for name in (adapter, against) if name is not None]
    rows = list(read_many(data, kind or guess_kind(data[0], source), source).require())
    asked = []
    for each in found:
        note(f"asking {each.reference}")
        answers = AdapterAnswers(
            each,
            ready(session, each.manifest.task),
            model,
            rows,
            context=settings.slot_tokens,
        )
        chosen = {name: ways[name] for name in changes or CHANGES}
        asked.append(judged.ask(answers, rows, chosen, share=share, seed=seed))
    if figure is not None:
        known = {name for each in asked for a in each.clean.values() for name in a.metrics()}
        if figure not in known:
            raise click.UsageError(f"--figure is one of {', '.join(sorted(known))}.")
    measured = {
        each.reference: judged.robustness(said, figure, seed=seed)
        for each, said in zip(found, asked, strict=True)
    }
    beside = judged.against(asked[0], asked[1], figure, seed=seed) if len(asked) > 1 else ()
    missed = [head for head in beside if not head.passed]
    if as_json:
        print_json(
            {
                "adapters": {n: [m.model_dump() for m in ms] for n, ms in measured.items()},
                "against": [each.model_dump() for each in beside],
            }
        )
    else:
        _tell(measured, beside)
    for head in missed:
        note(
            f"[{GateMissed.code}] {head.head}: {head.metric} of clean rows is "
            f"{-(head.clean.value or 0):.4f} lower, which is more than {judged.CLEAN_LOSS:g}."
        )
    return GateMissed.exit_code if missed else 0


def _tell(measured: Any, beside: Any) -> None:
    rows: list[tuple[Any, ...]] = []
    for name, each in measured.items():
        for head in each:
            rows.append((name, f"{head.head}: {head.metric}", "clean", head.rows, head.clean, ""))
            rows += [("", "", c.change, c.rows, c.value, c.drop) for c in head.changed]
    print_table(("adapter", "figure", "rows", "changed", "value", "drop"), rows)
    if beside:
        rows = []
        for each in beside:
            rows.append((f"{each.head}: {each.metric}", "clean", each.clean, ""))
            for change, difference in each.changed.items():
                less = each.less_drop[change]
                rows.append(("", change, difference, "" if less is None else f"{less:.0%}"))
        print_table(("figure", "rows", "better by", "less drop"), rows)
