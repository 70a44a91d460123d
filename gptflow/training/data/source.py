"""Sources: which fields of a file mean what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from gptflow.training.data.lines import MAX_LINE
from gptflow.training.data.tagging import Scheme

Kind = Literal["labels", "tags", "dialogues", "scores", "preferences", "text"]
KINDS: tuple[Kind, ...] = ("labels", "tags", "dialogues", "scores", "preferences", "text")

Format = Literal["jsonl", "csv", "tsv", "parquet", "conll"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "tsv", "parquet", "conll")

SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    **dict.fromkeys((".conll", ".iob", ".iob1", ".iob2", ".bio", ".bioes", ".conllu"), "conll"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How to read a file. The defaults fit files that name their fields as `Row` does.

    Attributes:
        format: by the file's suffix where it is None.
        text: the field with the text; the first of the usual names by default.
        labels: head by head, the field with its label; the first of the usual names by default.
        rename: labels as they are in the file, and what they are to be called: `{"0": "bearish"}`.
        strip_labels: take blanks round labels away, in place of refusing them.
        id, group, time, language: fields, each left out where the file has none of that name.
        scheme: of CoNLL tags; told from the file where it is None.
        token_column, tag_column: of CoNLL, from 1; told from the file where they are None.
        delimiter: of CSV.
        quotes: whether `"` encloses fields of CSV.
        max_line: bytes.
    """

    format: Format | None = None
    text: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    strip_labels: bool = False
    id: str = "id"
    group: str = "group"
    time: str = "time"
    language: str = "language"
    scheme: Scheme | None = None
    token_column: int | None = None
    tag_column: int | None = None
    delimiter: str | None = None
    quotes: bool = True
    encoding: str = "utf-8"
    max_line: int = MAX_LINE
