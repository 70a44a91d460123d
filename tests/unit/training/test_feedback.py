"""Feedback: from a corrected answer to the next adapter; and the commands that go with it."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptflow import Client
from gptflow.cli import main, session
from gptflow.errors import EmptyData, InvalidInput, UnreadableFile
from gptflow.plugins import Registry
from gptflow.testing import ScriptedEngine, registry_of
from gptflow.training import reservoir
from gptflow.training.data.reading import read
from gptflow.training.data.rows import Dialogue, LabelledText
from gptflow.training.data.source import Source
from gptflow.training.feedback import FILE, FeedbackTable

Outcome = tuple[int, str, str]
Invoke = Callable[..., Outcome]

QUICK = (
    "--batch", "16", "--epochs", "2", "--learning-rate", "3e-3", "--head-learning-rate", "1e-2",
)  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> FeedbackTable:
    return FeedbackTable(tmp_path / "feedback")


@pytest.fixture
def gptflow(
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Invoke]:
    """`gptflow("feedback", "list")` in an empty folder; jobs are those of a client in here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLOW_MODEL", str(tiny.model().path))
    monkeypatch.setenv("GPTFLOW_DATA_DIR", str(tmp_path / "data"))
    registry = registry_of(tiny.Topic(), tiny.Names(), tiny.Both(), tiny.Reply())
    monkeypatch.setattr(Registry, "load", lambda only=None: registry)
    session._load_registry.cache_clear()

    def invoke(*args: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(args)
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    with Client("memory://", engine=ScriptedEngine(), registry=registry) as client:

        @contextlib.contextmanager
        def same(self: Any, **_: Any) -> Iterator[Client]:
            yield client

        monkeypatch.setattr(session.Session, "client", same)
        invoke.client = client  # type: ignore[attr-defined]
        yield invoke
    session._load_registry.cache_clear()


def test_rows_are_kept_read_and_deleted(tiny: SimpleNamespace, table: FeedbackTable) -> None:
    first = table.add(tiny.Topic(), {"text": "my card 我"}, labels={"label": "card"}, job="j1")
    second = table.add(tiny.Reply(), "my card", reply="It is on its way.")
    assert table.rows() == [first, second]
    assert table.rows("tiny.reply") == [second]
    assert [turn.role for turn in second.turns] == ["user", "assistant"]
    assert stat.S_IMODE((table.folder / FILE).stat().st_mode) == 0o600
    assert table.remove([first.id, "fb_none"]) == 1
    assert table.rows() == [second]
    assert stat.S_IMODE((table.folder / FILE).stat().st_mode) == 0o600
    assert FeedbackTable(table.folder / "nowhere").rows() == []
    assert table.add(tiny.Both(), "so so", labels={"label": "bad"}).labels == {"mood": "bad"}
    assert table.remove([row.id for row in table.rows("tiny.both")]) == 1
    with (table.folder / FILE).open("a") as file:
        file.write('{"id": "fb_half\n')
    with pytest.raises(UnreadableFile, match=r"feedback\.jsonl:2 is damaged"):
        table.rows()


@pytest.mark.parametrize(
    ("task", "given", "more", "told"),
    [
        ("Topic", "x", {"labels": {"label": "cardd"}}, "Did you mean 'card'"),
        ("Topic", "x", {"labels": {"mood": "good"}}, "no head 'mood'"),
        ("Topic", "x", {"reply": "hello"}, "does not write answers"),
        ("Reply", "x", {"labels": {"label": "card"}}, "--reply TEXT"),
        ("Reply", "x", {"reply": "  "}, "blank"),
        ("Topic", "  ", {"labels": {"label": "card"}}, "no text"),
        ("Topic", {"n": 3}, {"labels": {"label": "card"}}, "no text"),
        ("Reply", {"messages": [{"role": "assistant", "content": "a"}]}, {"reply": "b"}, "no text"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    tiny: SimpleNamespace, table: FeedbackTable, task: str, given: Any, more: Any, told: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        table.add(getattr(tiny, task)(), given, **more)
    assert told in f"{caught.value} {caught.value.hint}"
    assert table.rows() == []


def test_a_training_takes_a_copy_of_rows_that_are_new_to_its_adapter(
    tiny: SimpleNamespace, table: FeedbackTable
) -> None:
    task = tiny.Both()
    with pytest.raises(EmptyData, match="no feedback"):
        table.data_file(task, tiny.table, None)
    table.add(task, "it is bad", labels={"mood": "good"})
    table.add(task, "it is bad", labels={"mood": "bad", "topic": "card"})
    table.add(task, "it is good", labels={"mood": "good"})
    file = table.data_file(task, tiny.table, None)
    rows = read(Path(file.path), "labels", Source(**file.source)).require()
    assert all(isinstance(row, LabelledText) for row in rows)
    assert [row.labels for row in rows if isinstance(row, LabelledText)] == [
        {"mood": "bad", "topic": "card"}, {"mood": "good"},
    ]  # fmt: skip
    assert stat.S_IMODE(Path(file.path).stat().st_mode) == 0o600
    talk = {"messages": [
        {"role": "user", "content": "hello"}, {"role": "agent", "text": "yes?"},
        {"role": "user", "content": "my card"},
    ]}  # fmt: skip
    table.add(tiny.Reply(), talk, reply="It is on its way.")
    file = table.data_file(tiny.Reply(), tiny.table, None)
    [row] = read(Path(file.path), "dialogues").require()
    assert isinstance(row, Dialogue)
    assert [turn.role for turn in row.turns] == ["user", "assistant", "user", "assistant"]


def test_a_corrected_answer_reaches_the_next_adapter(
    gptflow: Any, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.topic_rows(6)))
    code, out, err = gptflow("train", "tiny.topic", "--data", rows, "--rank", "4", *QUICK, "--json")
    assert code == 0, err
    first = json.loads(out)

    job = gptflow.client.submit("tiny.topic", {"text": "where is my parcel"})
    code, out, err = gptflow("feedback", "add", job.id, "--label", "card")
    assert code == 0, err
    assert "gptflow train tiny.topic --continue" in out
    code, out, err = gptflow(
        "feedback", "add", "--task", "tiny.topic", "--input", "ring me", "--label", "alarm",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["labels"] == {"label": "alarm"}
    [one, two] = json.loads(gptflow("feedback", "list", "--json")[1])
    assert (one["job"], one["text"], one["runs"]) == (job.id, "where is my parcel", [])
    assert "where is my parcel" in gptflow("feedback", "list")[1]

    args = ("train", "tiny.topic", "--continue", "topic", "--feedback", *QUICK, "--json")
    code, out, err = gptflow(*args)
    assert code == 0, err
    second = json.loads(out)
    assert "parcel" not in out + err
    assert second["parent"] == first["version"]
    assert second["rows"]["train"] == 2
    assert second["data"][0]["name"] == "feedback"
    kept = reservoir.load(tmp_path / "data" / "runs" / second["id"])
    assert {"where is my parcel", "ring me"} <= {k.row.content for k in kept or ()}
    listed = json.loads(gptflow("feedback", "list", "--json")[1])
    assert [row["runs"] for row in listed] == [[second["id"]]] * 2

    # The next one begins with what is new since.
    args = ("train", "tiny.topic", "--continue", second["version"], "--feedback", *QUICK, "--json")
    code, _, err = gptflow(*args)
    assert code == 3
    assert "was not trained on" in err
    assert gptflow("feedback", "add", job.id, "--label", "fee")[0] == 0
    code, out, err = gptflow(*args)
    assert code == 0, err
    assert json.loads(out)["rows"]["train"] == 1

    # Three stages: the second and the third had too few rows to be measured on.
    code, out, _ = gptflow("runs", "show", "last", "--json")
    stages = json.loads(out)["stages"]
    assert [stage["on"] for stage in stages["stages"]] == ["dev", "nothing", "nothing"]
    assert stages["backward_transfer"] is not None
    code, out, _ = gptflow("runs", "show", "last")
    assert "backward transfer" in out
    assert "accuracy at each stage's task" in out

    code, _, err = gptflow("feedback", "remove", two["id"])
    assert (code, err) == (0, "1 of 1 rows are deleted.\n")
    assert gptflow("feedback", "remove", two["id"])[0] == 8


def test_a_persons_reply_reaches_the_next_adapter(
    gptflow: Any, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.dialogue_rows()))
    code, _, err = gptflow("train", "tiny.reply", "--data", rows, "--rank", "4", *QUICK)
    assert code == 0, err
    job = gptflow.client.submit(
        "tiny.reply", {"messages": [{"role": "user", "content": "where is my refund"}]}
    )
    code, _, err = gptflow("feedback", "add", job.id, "--reply", "I have sent it again.")
    assert code == 0, err
    code, out, err = gptflow(
        "train", "tiny.reply", "--continue", "reply", "--feedback", *QUICK, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["rows"]["train"] == 1


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("feedback", "add", "JOB"), 2, "--label LABEL"),
        (("feedback", "add", "JOB", "--label", "card", "--reply", "x"), 2, "--label LABEL"),
        (("feedback", "add", "--label", "card"), 2, "--task TASK --input TEXT"),
        (("feedback", "add", "--input", "x", "--label", "card"), 2, "--task TASK --input TEXT"),
        (("feedback", "add", "JOB", "--label", "card"), 8, "GF501"),
        (("feedback", "add", "--task", "no.task", "--input", "x", "--label", "a"), 4, "no.task"),
        (("train", "tiny.topic", "--continue", "topic"), 2, "Say what to train"),
        (("train", "tiny.topic", "--data", "x.jsonl", "--replay", "0.2"), 2, "--continue"),
        (("train", "tiny.topic", "--data", "x.jsonl", "--ewc", "1"), 2, "--continue"),
        (("train", "tiny.topic", "--continue", "topic", "--feedback"), 4, "GF703"),
        (("train", "tiny.topic", "--feedback"), 3, "GF806"),
        (("train", "--resume", "last", "--feedback"), 2, "--resume takes"),
        (("robustness", "topic", "--data", "x.jsonl"), 4, "GF703"),
        (("robustness", "topic", "--data", "x.jsonl", "--share", "2"), 2, "at most 1"),
    ],
)
def test_what_is_wrong_is_told(gptflow: Any, args: tuple[str, ...], code: int, told: str) -> None:
    found, _, err = gptflow(*args)
    assert found == code, err
    assert told in err


def test_robustness_is_measured_and_compared(
    gptflow: Any, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    every = tiny.topic_rows(8)
    test = str(tiny.jsonl(tmp_path / "test.jsonl", every[::4]))
    rows = str(tiny.jsonl(tmp_path / "rows.jsonl", [row for row in every if row not in every[::4]]))
    made = []
    for more in ((), ("--adversarial", "fgm", "--epsilon", "0.1")):
        code, out, err = gptflow(
            "train", "tiny.topic", "--data", rows, "--test", test, "--rank", "4", *QUICK, *more,
            "--json",
        )  # fmt: skip
        assert code == 0, err
        made.append(json.loads(out))
    first, second = (record["version"] for record in made)
    code, out, err = gptflow(
        "robustness", second, "--data", test, "--against", first, "--figure", "accuracy", "--json"
    )
    found = json.loads(out)
    for record in made:
        [measured] = found["adapters"][record["version"]]
        assert measured["clean"]["value"] == pytest.approx(record["metrics"]["accuracy"]["value"])
        assert [each["change"] for each in measured["changed"]] == ["typos", "synonyms"]
        assert measured["changed"][0]["rows"] > 0
    [beside] = found["against"]
    assert code == (0 if beside["passed"] else 13), err
    code, out, err = gptflow("robustness", first, "--data", test, "--change", "typos")
    assert code == 0, err
    assert "clean" in out
    assert "synonyms" not in out
    code, _, err = gptflow("robustness", first, "--data", test, "--figure", "bleu")
    assert code == 2
    assert "macro_f1" in err
