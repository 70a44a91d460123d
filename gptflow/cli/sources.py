"""The options that say how a file of rows is to be read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gptflow.training.data.source import Source

KINDS = ("labels", "tags", "dialogues", "scores", "preferences", "text")
FORMATS = ("jsonl", "csv", "tsv", "parquet", "conll")
SCHEMES = ("iob1", "iob2", "bioes")

Command = TypeVar("Command", bound=Callable[..., Any])

_SOURCE = (
    click.option("--kind", type=click.Choice(KINDS), help="Of the rows.  [default: the fields']"),
    click.option("--format", type=click.Choice(FORMATS), help="[default: by the suffix]"),
    click.option("--text", metavar="FIELD", help="With the text."),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="[HEAD=]FIELD",
        help="With the label; once per head, where there are several.",
    ),
    click.option("--rename", multiple=True, metavar="OLD=NEW", help="Call a label by a new name."),
    click.option("--strip-labels", is_flag=True, help="Take blanks round labels away."),
    click.option("--group", metavar="FIELD", help="Rows of one group stay together."),
    click.option("--time", metavar="FIELD", help="When a row was written."),
    click.option("--language", metavar="FIELD", help="Of a row, such as zh."),
    click.option("--scheme", type=click.Choice(SCHEMES), help="Of tags.  [default: as they look]"),
    click.option("--token-column", type=click.IntRange(1), help="Of CoNLL, from 1."),
    click.option("--tag-column", type=click.IntRange(1), help="Of CoNLL, from 1."),
    click.option("--delimiter", metavar="CHARACTER", help="Of CSV."),
    click.option("--no-quotes", is_flag=True, help='CSV in which " is a character like others.'),
    click.option("--encoding", default="utf-8", show_default=True),
    click.option(
        "--max-line", type=click.IntRange(1), metavar="BYTES", help="Longest line.  [default: 1 MB]"
    ),
)


def source_options(command: Command) -> Command:
    """Add the options that say how to read a file; the command gets `kind` and `source`."""

    @functools.wraps(command)
    def with_source(**options: Any) -> Any:
        given = {name: options.pop(name) for name in names}
        return command(source=_source(given), **options)

    wrapped: Any = with_source
    before = {param.name for param in getattr(command, "__click_params__", ())}
    for option in reversed(_SOURCE):
        wrapped = option(wrapped)
    names = {param.name for param in wrapped.__click_params__} - before - {"kind"}
    return wrapped  # type: ignore[no-any-return]


def _source(given: Mapping[str, Any]) -> Source:
    from gptflow.training.data.rows import LABEL
    from gptflow.training.data.source import Source

    options = {
        name: given[name]
        for name in ("group", "time", "language", "max_line")
        if given[name] is not None
    }
    if given["delimiter"] is not None:
        delimiter = given["delimiter"].replace("\\t", "\t")
        if len(delimiter) != 1 or delimiter in '"\r\n ':
            raise click.UsageError(f"--delimiter is one character, not {given['delimiter']!r}.")
        options["delimiter"] = delimiter
    labels: dict[str, str] = {}
    for each in given["labels"]:
        head, equals, field = each.partition("=")
        labels[head if equals else LABEL] = field if equals else head
    if len(labels) < len(given["labels"]):
        raise click.UsageError("Several --label need a head each: `--label topic=category`.")
    rename = dict(each.partition("=")[::2] for each in given["rename"])
    if not all(rename.values()):
        raise click.UsageError("--rename is OLD=NEW.")
    return Source(
        format=given["format"],
        text=given["text"],
        labels=labels,
        rename=rename,
        strip_labels=given["strip_labels"],
        scheme=given["scheme"],
        token_column=given["token_column"],
        tag_column=given["tag_column"],
        quotes=not given["no_quotes"],
        encoding=given["encoding"],
        **options,
    )
