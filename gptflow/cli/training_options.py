"""The options of commands that train, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Number

if TYPE_CHECKING:
    from gptflow.training.data.source import Source
    from gptflow.training.runs import DataFile

_POSITIVE = Number("number", least=0, above=True)
_NOT_NEGATIVE = Number("number", least=0)

_SETTINGS = (
    click.option(
        "--method",
        type=click.Choice(("lora", "head", "full")),
        help="What is trained: LoRA and a head, the head alone, all weights.  [default: lora]",
    ),
    click.option("--rank", type=click.IntRange(1, 512), help="Of LoRA.  [default: 16]"),
    click.option("--alpha", type=_POSITIVE, help="Of LoRA.  [default: twice the rank]"),
    click.option("--dropout", type=_NOT_NEGATIVE, help="Of LoRA.  [default: 0.05]"),
    click.option(
        "--layers",
        type=click.Choice(("all", "upper")),
        help="With LoRA; `upper` computes the lower half once.  [default: all]",
    ),
    click.option("--pooling", type=click.Choice(("last", "mean")), help="[default: last]"),
    click.option("--learning-rate", type=_POSITIVE, help="[default: 3e-4; of preferences 5e-5]"),
    click.option("--head-learning-rate", type=_POSITIVE, help="[default: 1e-3]"),
    click.option("--weight-decay", type=_NOT_NEGATIVE, help="[default: 0]"),
    click.option("--warmup", type=_NOT_NEGATIVE, help="Share of the steps.  [default: 0.05]"),
    click.option("--clip", type=_POSITIVE, help="Longest gradient.  [default: 1]"),
    click.option("--epochs", type=_POSITIVE, help="[default: 3; of preferences and raw text 1]"),
    click.option("--batch", type=click.IntRange(1), help="Examples a step.  [default: 32]"),
    click.option(
        "--batch-tokens", type=click.IntRange(16), help="Tokens a forward pass.  [default: 2048]"
    ),
    click.option("--precision", type=click.Choice(("fp32", "bf16")), help="[default: fp32]"),
    click.option("--evaluations", type=click.IntRange(1), help="An epoch.  [default: 2]"),
    click.option(
        "--patience", type=click.IntRange(1), help="Evaluations to wait for better.  [default: 3]"
    ),
    click.option("--dev-share", "dev", type=_POSITIVE, help="Of the rows.  [default: 0.1]"),
    click.option(
        "--keep-repeats",
        is_flag=True,
        default=None,
        help="Train on rows that repeat others, or rows of the test.",
    ),
    click.option("--class-weights", is_flag=True, default=None, help="Rare labels weigh more."),
    click.option(
        "--in-scope",
        type=_POSITIVE,
        metavar="SHARE",
        help="Of the development rows whose energy a text needs to be about any label.",
    ),
    click.option("--pairwise/--pointwise", default=None, help="Of scores.  [default: pairwise]"),
    click.option(
        "--adversarial",
        type=click.Choice(("fgm", "pgd", "freelb")),
        help="Also learn from what raises the loss most nearby.",
    ),
    click.option("--epsilon", type=_POSITIVE, help="How far to look, in tokens.  [default: 1]"),
    click.option(
        "--adversarial-steps", type=click.IntRange(2, 32), help="Of pgd and freelb.  [default: 3]"
    ),
    click.option(
        "--replay", type=_NOT_NEGATIVE, help="Old rows' share, with --continue.  [default: 0.1]"
    ),
    click.option(
        "--rebalance/--no-rebalance",
        default=None,
        help="After replay, fit the head to all labels alike.  [default: it is]",
    ),
    click.option(
        "--ewc", type=_NOT_NEGATIVE, help="Hold old weights, with --continue.  [default: 0]"
    ),
    click.option(
        "--keep",
        type=click.IntRange(0),
        help="Rows for a later --continue.  [default: 1000, or 50 of each class]",
    ),
    click.option("--beta", type=_POSITIVE, help="Of preferences.  [default: 0.1]"),
    click.option(
        "--serve-floor/--no-serve-floor",
        default=None,
        help="Simple models answer, too, where that is better.  [default: they do]",
    ),
    click.option("--checkpoint-minutes", type=_NOT_NEGATIVE, help="[default: 3]"),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="[default: 0]"),
    click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), help="[default: auto]"),
)


def settings_options(without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Add an option for each setting of a training but these."""

    def add(command: Any) -> Any:
        for option in reversed(_SETTINGS):
            before = list(getattr(command, "__click_params__", ()))
            command = option(command)
            if command.__click_params__[-1].name in without:
                command.__click_params__ = before
        return command

    return add


def data_files(
    data: Sequence[Path],
    dev: Sequence[Path],
    test: Sequence[Path],
    kind: Any,
    source: Source,
    name: str,
    licence: str,
) -> list[DataFile]:
    """A training's files, each with those of the heads that it has labels for."""
    from gptflow.training.data.reading import guess_kind
    from gptflow.training.parts import data_file

    files = [
        (part, path, own_labels(path, source))
        for part, paths in (("train", data), ("dev", dev), ("test", test))
        for path in paths
    ]
    known = {head for _, _, own in files for head in own.labels}
    if missing := sorted(source.labels.keys() - known):
        raise click.UsageError(
            f"No file has the field {source.labels[missing[0]]!r} of the head {missing[0]!r}."
        )
    return [
        data_file(path, part, kind or guess_kind(path, own), own, name=name, licence=licence)
        for part, path, own in files
    ]


def own_labels(path: Path, source: Source) -> Source:
    """A file of a data set that knows some of the heads only: the others are masked there."""
    from gptflow.training.data.reading import fields_of

    if len(source.labels) < 2 or not path.is_file():
        return source
    fields = fields_of(path, source)
    own = {head: field for head, field in source.labels.items() if field in fields}
    return dataclasses.replace(source, labels=own)


def gates_of(given: Sequence[str]) -> dict[str, float]:
    """The values of `--gate FIGURE=VALUE`."""
    gates = {}
    for each in given:
        figure, _, value = each.partition("=")
        try:
            gates[figure] = float(value)
        except ValueError:
            raise click.UsageError(f"--gate is FIGURE=VALUE, not {each!r}.") from None
    return gates
