"""`gptflow run`: how inputs are given, and what comes out."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptflow.queue.memory import MemoryTransport
from gptflow.transport import Event


def test_a_text_is_answered_with_a_text(gptflow: Any) -> None:
    outcome = gptflow("run", "text.chat", "Hello", "--local")
    assert (outcome.code, outcome.out) == (0, "A scripted answer.\n")


def test_json_is_the_whole_result_with_its_provenance(gptflow: Any) -> None:
    result = gptflow("run", "text.chat", "Hello", "--json", "--local", "--seed", "7").json
    assert result["state"] == "done"
    assert result["output"]["text"] == "A scripted answer."
    assert result["provenance"]["model"]["id"] == "scripted"
    assert result["provenance"]["seed"] == 7
    assert result["v"] == 1


def test_without_redis_the_work_is_done_here_and_a_note_says_so(gptflow: Any) -> None:
    outcome = gptflow("run", "text.chat", "Hello")
    assert outcome.code == 0
    assert "working in this process" in outcome.err


def test_a_json_object_is_the_input_itself(gptflow: Any) -> None:
    given = json.dumps({"text": "good", "labels": ["yes", "no"]})
    outcome = gptflow("run", "text.classify", given, "--local")
    assert outcome.json["label"] in ("yes", "no")


def test_a_file_is_named_with_an_at_sign(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"text": "a", "items": ["b", "c"]}))
    assert len(gptflow("run", "text.score", "@in.json", "--local").json["scores"]) == 2


def test_a_dash_reads_standard_input(gptflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello")))
    assert gptflow("run", "text.chat", "-", "--local").code == 0


def test_bytes_that_are_not_text_are_refused_not_dropped(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), errors="replace"))
    (tmp_path / "in.json").write_bytes(b'"caf\xe9"')
    for given, name in (
        ("-", "Standard input"),
        ("caf\udce9", "argument"),
        ("@in.json", "in.json"),
    ):
        outcome = gptflow("run", "text.chat", given, "--local")
        assert outcome.code == 3
        assert f"{name} is not UTF-8" in outcome.err
        assert "0xe9" in outcome.err


def test_a_byte_order_mark_is_no_part_of_the_text(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_bytes(b'\xef\xbb\xbf{"text": "a", "labels": ["b", "c"]}')
    assert gptflow("run", "text.classify", "@in.json", "--local").code == 0


def test_a_text_that_starts_again_starts_on_a_line_of_its_own(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = MemoryTransport.events

    def interrupted(transport: Any, *args: Any) -> Iterator[Event]:
        yield Event(id="0-1", kind="delta", text="Another")
        yield Event(id="0-2", kind="reset")
        yield from events(transport, *args)

    monkeypatch.setattr(MemoryTransport, "events", interrupted)
    outcome = gptflow("run", "text.chat", "Hi", "--stream", "--local")
    assert outcome.out == "Another\nA scripted answer.\n"
    assert "its text starts again" in outcome.err


def test_a_text_that_starts_again_the_same_is_printed_once(
    gptflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = MemoryTransport.events

    def interrupted(transport: Any, *args: Any) -> Iterator[Event]:
        yield Event(id="0-1", kind="delta", text="A scripted")
        yield Event(id="0-2", kind="reset")
        yield from events(transport, *args)

    monkeypatch.setattr(MemoryTransport, "events", interrupted)
    assert gptflow("run", "text.chat", "Hi", "--stream", "--local").out == "A scripted answer.\n"


def test_the_task_that_a_stream_is_asked_of_may_not_exist(gptflow: Any) -> None:
    assert gptflow("run", "text.chatt", "Hi", "--stream", "--local").code == 4


def test_streaming_prints_the_same_text(gptflow: Any) -> None:
    assert gptflow("run", "text.chat", "Hi", "--stream", "--local").out == "A scripted answer.\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("text.chat", "   "), 3, "GF301"),
        (("text.chta", "Hi"), 4, "Did you mean 'text.chat'?"),
        (("text.chat", '{"mesages": []}'), 3, "Did you mean 'messages'?"),
        (("text.chat", '{"messages": 5}'), 3, "'messages' must be a list, not a whole number"),
        (("text.chat", "@nothing.json"), 3, "nothing.json cannot be read"),
        (("text.chat", "@you and me"), 3, "`gptflow run text.chat -`"),
        (("text.chat", "Hi", "--timeout", "nan"), 2, "'nan' is not a number above 0"),
        (("text.chat", "Hi", "--timeout", "inf"), 2, "--timeout"),
        (("text.chat", '{"messages": [}'), 3, "looks like JSON"),
    ],
)
def test_a_mistake_is_named_and_has_an_exit_code_of_its_own(
    gptflow: Any, args: tuple[str, ...], code: int, says: str
) -> None:
    outcome = gptflow("run", *args, "--local")
    assert outcome.code == code
    assert says in outcome.err
    assert outcome.out == ""


def test_with_json_a_failure_is_a_result_too(gptflow: Any) -> None:
    outcome = gptflow("run", "text.chat", "  ", "--local", "--json")
    assert outcome.code == 3
    assert outcome.json["state"] == "failed"
    assert outcome.json["error"]["code"] == "GF301"


def test_code_that_begins_with_a_brace_is_text(gptflow: Any) -> None:
    assert gptflow("run", "text.generate", "{ int x = 1; }", "--local").code == 0


def test_an_unknown_command_is_answered_with_the_nearest(gptflow: Any) -> None:
    outcome = gptflow("plugns")
    assert outcome.code == 2
    assert "Did you mean 'plugins'?" in outcome.err


def test_an_unknown_option_is_answered_with_the_nearest(gptflow: Any) -> None:
    outcome = gptflow("run", "text.chat", "Hi", "--strem")
    assert outcome.code == 2
    assert "--stream" in outcome.err


def test_a_dead_redis_is_named_and_never_replaced(gptflow: Any) -> None:
    outcome = gptflow("--redis", "redis://:s3cret@127.0.0.1:1/0", "run", "text.chat", "Hi")
    assert outcome.code == 5
    assert "127.0.0.1:1" in outcome.err
    assert "s3cret" not in outcome.err


def test_a_task_without_text_to_stream_prints_its_answer(gptflow: Any) -> None:
    given = json.dumps({"text": "good", "labels": ["yes", "no"]})
    assert gptflow("run", "text.classify", given, "--stream", "--local").json["label"]


def test_streaming_and_json_exclude_each_other(gptflow: Any) -> None:
    assert gptflow("run", "text.chat", "Hi", "--stream", "--json").code == 2


def test_a_model_is_refused_where_a_worker_has_one(gptflow: Any) -> None:
    outcome = gptflow("--redis", "redis://127.0.0.1:1/0", "run", "text.chat", "Hi", "--model", "x")
    assert outcome.code == 2
    assert "--local" in outcome.err


def test_a_cut_input_is_mentioned(gptflow: Any) -> None:
    assert "was cut" in gptflow("run", "text.generate", "x " * 50_000, "--local").err


def test_verbose_errors_keep_their_exit_code(gptflow: Any) -> None:
    outcome = gptflow("-v", "run", "text.nothing", "Hi", "--local")
    assert outcome.code == 4
    assert "Traceback" in outcome.err
