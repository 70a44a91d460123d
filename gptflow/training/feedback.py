"""Feedback: what people said about answers, kept in a table until a training takes it.

A row is a label that somebody corrected, or what a person replied after taking a conversation over.
The table is one JSONL file, readable to its owner alone: the rows are users' data. A training takes
a copy of the rows that the adapter it goes on from has not been trained on yet; the copy is an
ordinary data file, so a run can be resumed whatever is added or removed meanwhile.

<data_dir>/feedback/
    feedback.jsonl
    taken/5f0c2a61b09d.jsonl        what a training took
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gptflow.errors import EmptyData, GPTFlowError, InvalidInput, UnreadableFile
from gptflow.heads import Classify, Generate, Head, MultiHead
from gptflow.plugins import AnyTask
from gptflow.suggestion import did_you_mean
from gptflow.training.data.fields import TEXTS, TURNS, role_of
from gptflow.training.data.rows import LABEL
from gptflow.training.runs import DataFile, RunTable

FILE = "feedback.jsonl"
TAKEN = "taken"
NAME = "feedback"
"""What the data is called in an adapter's manifest."""

_SAYINGS = ("content", "text")


class Turn(BaseModel):
    """What one side of a conversation says at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Feedback(BaseModel):
    """One row of the table: a text with its right labels, or a conversation with a reply.

    Attributes:
        job: that it is about, where it is about one.
        labels: by head; `label` where there is only one.
        turns: the last one is the reply.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    at: datetime
    task: str
    job: str | None = None
    text: str | None = None
    labels: Mapping[str, str] = {}
    turns: tuple[Turn, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Feedback:
        if bool(self.labels) == bool(self.turns) or bool(self.labels) != (self.text is not None):
            raise ValueError("a row has a text with labels, or turns")
        return self

    @property
    def said(self) -> str:
        """What it is about: the text, or what was said before the reply."""
        return self.text or "\n".join(turn.content for turn in self.turns[:-1])


class FeedbackTable:
    """All feedback on this machine.

    Args:
        folder: `Settings.data_dir / "feedback"`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        task: AnyTask,
        given: Any,
        *,
        labels: Mapping[str, str] | None = None,
        reply: str | None = None,
        job: str | None = None,
    ) -> Feedback:
        """Put a row into the table.

        Args:
            given: the input that the task got, or a text.
            labels: the right ones, by head.
            reply: what a person answered.

        Raises:
            InvalidInput: the task has no such label, or answers in no such way; or the input has
                no text.
            OSError: the table cannot be written.
        """
        fields: dict[str, Any] = {"task": task.name, "job": job}
        if reply is not None:
            if not reply.strip():
                raise InvalidInput("The reply is blank.")
            _check_reply(task)
            asked = _turns(task, given)
            fields["turns"] = (*asked, Turn(role="assistant", content=reply))
        else:
            fields["labels"] = _checked(task, dict(labels or {}))
            fields["text"] = next(
                t for t in reversed(_turns(task, given)) if t.role == "user"
            ).content
        number = secrets.token_hex(6)
        made = Feedback(id=f"fb_{number}", at=datetime.now(UTC), **fields)
        with self._writing():
            line = made.model_dump_json(exclude_none=True) + "\n"
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        return made

    def rows(self, task: str | None = None) -> list[Feedback]:
        """The rows of a task, or all, the oldest first.

        Raises:
            UnreadableFile: a line is damaged.
        """
        try:
            lines = self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        rows = [_read(line, self._file, number) for number, line in enumerate(lines, 1)]
        return [row for row in rows if task in (None, row.task)]

    def remove(self, ids: Iterable[str]) -> int:
        """Delete rows. What trainings have taken already is theirs.

        Returns:
            How many there were.
        """
        gone = set(ids)
        with self._writing():
            rows = self.rows()
            left = [row for row in rows if row.id not in gone]
            if len(left) < len(rows):
                lines = (row.model_dump_json(exclude_none=True) + "\n" for row in left)
                _write(self._file, "".join(lines).encode())
        return len(rows) - len(left)

    def data_file(self, task: AnyTask, table: RunTable, run: str | None) -> DataFile:
        """A copy of a task's rows, for a run to train on.

        Of several rows about the same text the last one counts.

        Args:
            run: that the adapter came of which is gone on from: rows that it, or one before it,
                was trained on are left out.

        Raises:
            EmptyData: there are none.
        """
        known = _taken_by(table, run)
        rows = {row.said: row for row in self.rows(task.name) if row.id not in known}
        if not rows:
            others = f" that {run} was not trained on" if known else ""
            raise EmptyData(
                f"There is no feedback for task {task.name!r}{others}.",
                hint="`gptflow feedback add JOB --label LABEL` makes a row; "
                "`gptflow feedback list` shows them.",
            )
        kinds = {bool(row.turns) for row in rows.values()}
        if len(kinds) > 1:
            raise InvalidInput(
                f"The feedback for task {task.name!r} has labels and replies.",
                hint="`gptflow feedback remove ID` what the task does not learn from.",
            )
        heads = tuple(dict.fromkeys(head for row in rows.values() for head in row.labels))
        content = "".join(
            json.dumps(_record(row, heads), ensure_ascii=False) + "\n" for row in rows.values()
        ).encode()
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / TAKEN / f"{digest[:12]}.jsonl"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, content)
        source: dict[str, Any] = {"labels": {h: f"label.{h}" for h in heads}} if heads else {}
        return DataFile(
            path=str(path.resolve()),
            split="train",
            kind="labels" if heads else "dialogues",
            sha256=digest,
            source=source,
            name=NAME,
            licence="own",
        )

    def taken(self, table: RunTable) -> dict[str, list[str]]:
        """By row, the runs that took it."""
        found: dict[str, list[str]] = {}
        for run in table.list():
            for each in _ids(run.record.data):
                found.setdefault(each, []).append(run.folder.name)
        return found

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock"):
            yield


def labels_of(head: Head | None) -> Mapping[str, tuple[str, ...]]:
    """A head's labels by name, as trainings call them; none where it chooses no label."""
    if isinstance(head, Classify):
        return {LABEL: tuple(head.labels)}
    if isinstance(head, MultiHead):
        return {n: tuple(each.labels) for n, each in head.heads.items() if hasattr(each, "labels")}
    return {}


def _checked(task: AnyTask, labels: dict[str, str]) -> dict[str, str]:
    known = labels_of(task.head)
    if not known:
        raise InvalidInput(
            f"Task {task.name!r} does not choose labels.",
            hint="Give what should have been said: `--reply TEXT`."
            if isinstance(task.head, Generate)
            else "Name the task that does: `--task TASK`.",
        )
    if LABEL not in known and LABEL in labels:  # a label that one head has needs no head's name
        having = [head for head, names in known.items() if labels[LABEL] in names]
        if len(having) == 1:
            labels = {**labels, having[0]: labels[LABEL]}
            labels.pop(LABEL)
    for head, label in labels.items():
        if head not in known:
            raise InvalidInput(
                f"Task {task.name!r} has no head {head!r}.",
                hint=f"Its heads are {', '.join(known)}: `--label {next(iter(known))}=LABEL`.",
            )
        if label not in known[head]:
            raise InvalidInput(
                f"Task {task.name!r} has no label {label!r}.",
                hint=did_you_mean(label, known[head]) or f"Its labels: {', '.join(known[head])}.",
            )
    return dict(labels)


def _check_reply(task: AnyTask) -> None:
    if task.head is not None and not isinstance(task.head, Generate):
        raise InvalidInput(
            f"Task {task.name!r} does not write answers, so it cannot learn from a reply.",
            hint="Give the right label, or name the task that writes: `--task TASK`.",
        )


def _turns(task: AnyTask, given: Any) -> tuple[Turn, ...]:
    """What an input says. Whoever spoke for the company, a person or not, is the assistant."""
    if isinstance(given, str) and given.strip():
        return (Turn(role="user", content=given),)
    if isinstance(given, Mapping):
        for name in TURNS:
            if isinstance(given.get(name), list | tuple):
                turns = tuple(filter(None, map(_turn, given[name])))
                if any(turn.role == "user" for turn in turns):
                    return turns
        names = dict.fromkeys((*task.input_type.from_text(""), *TEXTS))
        for name in names:
            if isinstance(value := given.get(name), str) and value.strip():
                return (Turn(role="user", content=value),)
    raise InvalidInput(
        f"The input of task {task.name!r} has no text to learn from.",
        hint="Give the text itself: `gptflow feedback add --task TASK --input TEXT`.",
    )


def _turn(given: Any) -> Turn | None:
    if not isinstance(given, Mapping):
        return None
    role = role_of(given.get("role"))
    said = next((given[name] for name in _SAYINGS if isinstance(given.get(name), str)), "")
    return Turn(role=role, content=said) if role and said.strip() else None


def _record(row: Feedback, heads: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id}
    if row.turns:
        return record | {"turns": [turn.model_dump() for turn in row.turns]}
    # A head may be called as another field is.
    return record | {"text": row.text} | {f"label.{h}": row.labels.get(h) for h in heads}


def _taken_by(table: RunTable, run: str | None) -> set[str]:
    from gptflow.training.stages import Stages

    if run is None:
        return set()
    chain = {run}
    with contextlib.suppress(GPTFlowError):
        stages = Stages.load(table.folder / run)
        chain |= {stage.run for stage in stages.stages} if stages is not None else set()
    found: set[str] = set()
    for each in chain:
        with contextlib.suppress(GPTFlowError):
            found |= _ids(table.find(each).record.data)
    return found


def _ids(files: Iterable[DataFile]) -> set[str]:
    """The rows of the table in data files; none of those that are gone."""
    found: set[str] = set()
    for file in files:
        if file.name == NAME and Path(file.path).parent.name == TAKEN:
            with contextlib.suppress(OSError, ValueError, KeyError):
                lines = Path(file.path).read_bytes().splitlines()
                found |= {json.loads(line)["id"] for line in lines}
    return found


def _read(line: bytes, path: Path, number: int) -> Feedback:
    try:
        return Feedback.model_validate_json(line)
    except ValidationError:
        raise UnreadableFile(
            f"{path}:{number} is damaged.", hint="Mend the line, or take it out."
        ) from None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, for its owner alone."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
