"""CoNLL: one token a line, its tag in a column, sentences parted by blank lines."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptflow.errors import UnreadableFile
from gptflow.training.data.fields import check_label
from gptflow.training.data.lines import read_lines
from gptflow.training.data.problem import Problem
from gptflow.training.data.rows import Origin, TaggedText
from gptflow.training.data.source import Source
from gptflow.training.data.tagging import Scheme, complaint, detect, to_iob2
from gptflow.training.data.tokens import align

_COMMENT = re.compile(r"#\s*(new(doc|par)\b|(global\.)?[\w.-]+(\s+\w+)?\s*[=:])")
_TEXT = re.compile(r"#\s*text\s*=\s*(.+)")
_ID = re.compile(r"#\s*(?:sent_id|id)\s*=\s*(\S+)")
_DOCSTART = "-DOCSTART-"


@dataclasses.dataclass(slots=True)
class _Sentence:
    line: int
    columns: list[list[str]] = dataclasses.field(default_factory=list)
    lines: list[int] = dataclasses.field(default_factory=list)
    text: str | None = None
    id: str | None = None
    document: int = 0
    torn: bool = False


def read_conll(path: Path, source: Source) -> Iterator[TaggedText | Problem]:
    """Rows with tags in IOB2, whatever the file's scheme; a row's line is its first token's.

    A sentence with a line that cannot be read is not a row, and the line is reported. The whole
    file is read before the first row is given: its columns and its scheme show only then.

    Raises:
        UnreadableFile: no column holds tags.
    """
    problems: list[Problem] = []
    sentences = list(_sentences(path, source, problems))
    widths = Counter(len(columns) for s in sentences for columns in s.columns)
    if not widths:
        yield from problems
        return
    width = widths.most_common(1)[0][0]
    for sentence in sentences:
        for line, columns in zip(sentence.lines, sentence.columns, strict=True):
            if len(columns) != width:
                message = f"the line has {len(columns)} columns, and most have {width}"
                problems.append(Problem(Origin(str(path), line), "format", message))
                sentence.torn = True
    whole = [sentence for sentence in sentences if not sentence.torn]
    word, tag = _find_columns(path, whole, width, source)
    scheme = source.scheme or detect([c[tag] for c in s.columns] for s in whole)
    rows = [_row(path, sentence, word, tag, scheme, source) for sentence in whole]
    yield from sorted([*rows, *problems], key=lambda found: found.origin.line)


def scheme_of(path: Path, source: Source) -> Scheme:
    """The scheme of a file, as told from all of its tags."""
    sentences = list(_sentences(path, source, []))
    widths = Counter(len(c) for s in sentences for c in s.columns)
    if not widths:
        return source.scheme or "iob2"
    width = widths.most_common(1)[0][0]
    whole = [s for s in sentences if all(len(c) == width for c in s.columns)]
    _, tag = _find_columns(path, whole, width, source)
    return detect([columns[tag] for columns in s.columns] for s in whole)


def _sentences(path: Path, source: Source, problems: list[Problem]) -> Iterator[_Sentence]:
    current = _Sentence(1)
    document = 0
    for number, line in read_lines(path, encoding=source.encoding, max_line=source.max_line):
        if isinstance(line, Problem):
            problems.append(line)
            current.torn = True
        elif not line.strip():
            if current.columns:
                yield current
            current = _Sentence(number + 1)
        elif not current.columns and _COMMENT.match(line):
            if match := _TEXT.match(line):
                current.text = match[1].strip()
            elif match := _ID.match(line):
                current.id = match[1]
        elif line.startswith(_DOCSTART):
            document += 1
        else:
            current.columns.append(line.split("\t") if "\t" in line else line.split())
            current.lines.append(number)
            current.document = document
    if current.columns:
        yield current


def _find_columns(
    path: Path, sentences: Sequence[_Sentence], width: int, source: Source
) -> tuple[int, int]:
    """The columns of words and of tags, from 0.

    CoNLL-U counts tokens in the first column. Tags are in the last column that holds tags only
    and is not all O or, where each is, in the last that is.
    """
    rows = [columns for sentence in sentences for columns in sentence.columns]
    for column in (source.token_column, source.tag_column):
        if column is not None and not 1 <= column <= width:
            raise UnreadableFile(
                f"{path} has {width} columns, and no column {column}.", hint="Count from 1."
            )
    counted = width > 2 and all(
        [columns[0] for columns in s.columns] == [str(n + 1) for n in range(len(s.columns))]
        for s in sentences
    )
    word = int(counted) if source.token_column is None else source.token_column - 1
    if source.tag_column is not None:
        return word, source.tag_column - 1
    # A few tags that are wrong are reported by line; a column of other things is not tags.
    shares = {
        column: sum(complaint(columns[column]) is None for columns in rows) / max(len(rows), 1)
        for column in range(width)
        if column != word
    }
    likely = [column for column, share in shares.items() if share > 0.5]
    if not likely:
        raise UnreadableFile(
            f"No column of {path} holds tags such as O, B-ORG and I-ORG.",
            hint="Say which it is: `--tag-column 4`.",
        )
    telling = [c for c in likely if any(columns[c] != "O" for columns in rows)]
    return word, max(telling or likely)


def _row(
    path: Path, sentence: _Sentence, word: int, tag: int, scheme: Scheme, source: Source
) -> TaggedText | Problem:
    tags = [columns[tag] for columns in sentence.columns]
    for line, each in zip(sentence.lines, tags, strict=True):
        wrong = complaint(each) or (check_label(each[2:]) if each != "O" else None)
        if wrong:
            return Problem(Origin(str(path), line), "label" if " " in each else "tags", wrong)
    words = [columns[word] for columns in sentence.columns]
    for line, each in zip(sentence.lines, words, strict=True):
        if not each.strip():
            return Problem(Origin(str(path), line), "format", "the token is blank")
    origin = Origin(str(path), sentence.lines[0])
    try:
        iob2 = to_iob2(tags, scheme)
    except ValueError as error:
        return Problem(origin, "tags", str(error))
    text, tokens = align(words, sentence.text)
    return TaggedText(
        origin=origin,
        id=sentence.id,
        group=f"document {sentence.document}" if sentence.document else None,
        text=text,
        tokens=tokens,
        tags=tuple(t if t == "O" else t[:2] + source.rename.get(t[2:], t[2:]) for t in iob2),
    )
