"""`gptflow submit`: a file of rows in, a file of results out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gptflow.cli.broken_off import BrokenOff
from gptflow.envelope import new_id


def _write(path: Path, *rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_has_one_line_in_the_rows_order(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", *({"id": f"r{n}", "text": f"Text {n}"} for n in range(150)))
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 0
    lines = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(150)]
    assert all(line["output"]["text"] == "A scripted answer." for line in lines)
    assert all(set(line) == {"custom_id", "output", "error", "provenance"} for line in lines)


def test_a_bad_row_fails_alone_and_the_exit_code_says_so(gptflow: Any, tmp_path: Path) -> None:
    good = json.dumps({"custom_id": "good", "input": {"text": "Hi"}})
    blank = json.dumps({"custom_id": "blank", "input": {"text": " "}})
    (tmp_path / "in.jsonl").write_text(f"{good}\n\nnot json\n{blank}\n", encoding="utf-8")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 9
    assert "3 rows: 1 done, 2 failed" in outcome.err
    first, second, third = _read(tmp_path / "out.jsonl")
    assert (first["custom_id"], first["error"]) == ("good", None)
    assert "Line 3 is not JSON" in second["error"]["message"]
    assert (third["custom_id"], third["error"]["code"]) == ("blank", "GF301")


def test_a_file_with_only_bad_rows_gives_only_errors(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{\n[\n", encoding="utf-8")
    assert gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl").code == 9
    assert len(_read(tmp_path / "out.jsonl")) == 2


def test_without_out_results_go_to_standard_output(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "plain text", {"text": "an object"})
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--local")
    assert [json.loads(line)["custom_id"] for line in outcome.out.splitlines()] == [
        "line-1",
        "line-2",
    ]


def test_an_empty_file_is_an_error(gptflow: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--local")
    assert outcome.code == 3
    assert "no rows" in outcome.err


def test_an_unknown_task_is_not_nine_but_four(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a", "b")
    outcome = gptflow("submit", "text.gnerate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 4
    assert "Did you mean 'text.generate'?" in outcome.err
    assert {line["error"]["code"] for line in _read(tmp_path / "out.jsonl")} == {"GF210"}


def test_an_unknown_task_is_four_beside_rows_that_cannot_be_read(
    gptflow: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('not json\n"a"\n')
    outcome = gptflow("submit", "text.gnerate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 4
    assert [line["error"]["code"] for line in _read(tmp_path / "out.jsonl")] == ["GF300", "GF210"]


def test_the_input_file_is_never_overwritten(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a")
    assert gptflow("submit", "text.generate", "in.jsonl", "--out", "./in.jsonl").code == 2
    assert _read(tmp_path / "in.jsonl") == ["a"]


def test_a_row_without_a_name_is_named_after_its_line(gptflow: Any, tmp_path: Path) -> None:
    lines = [b"not json", b"\xff\xfe binary", b'"text"', b'{"custom_id": "mine"}']
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    assert gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl").code == 9
    found = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in found] == ["line-1", "line-2", "line-3", "line-4"]
    assert found[2]["error"] is None
    assert "not UTF-8" in found[1]["error"]["message"]
    assert "holds no input" in found[3]["error"]["message"]


def test_rows_that_no_queue_would_take_fail_alone(gptflow: Any, tmp_path: Path) -> None:
    strange = [
        '{"text": NaN}',
        "[" * 100_000,
        json.dumps({"custom_id": "x" * 300, "input": "text"}),
        json.dumps({"custom_id": "none", "input": None}),
        '{"text": "\\ud800 lone"}',
        json.dumps({"text": "fine"}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(strange), encoding="utf-8")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 9
    lines = _read(tmp_path / "out.jsonl")
    assert [line["error"] is None for line in lines] == [False] * 4 + [True] * 2
    assert "NaN is not a JSON number" in lines[0]["error"]["message"]
    assert "nested too deeply" in lines[1]["error"]["message"]
    assert "over 256 characters" in lines[2]["error"]["message"]
    assert "holds no input" in lines[3]["error"]["message"]


def test_an_output_that_cannot_be_written_is_found_out_first(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "no/such/out.jsonl")
    assert outcome.code == 2
    assert "--out" in outcome.err
    assert "no/such/out.jsonl cannot be written" in outcome.err
    assert "rows" not in outcome.err


def test_an_error_file_has_the_failed_rows_and_the_output_has_all(
    gptflow: Any, tmp_path: Path
) -> None:
    _write(tmp_path / "in.jsonl", {"id": "a", "text": "Hi"}, {"id": "b", "text": " "}, None)
    options = ("--out", "out.jsonl", "--errors", "bad.jsonl")
    assert gptflow("submit", "text.generate", "in.jsonl", *options, "--local").code == 9
    lines = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == ["a", "b", "line-3"]
    assert _read(tmp_path / "bad.jsonl") == lines[1:]
    assert {line["error"]["code"] for line in lines[1:]} == {"GF301", "GF300"}


def test_a_batch_without_failures_leaves_an_empty_error_file(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a")
    (tmp_path / "bad.jsonl").write_text("of last time")
    options = ("--errors", "bad.jsonl", "--local")
    assert gptflow("submit", "text.generate", "in.jsonl", *options).code == 0
    assert (tmp_path / "bad.jsonl").read_bytes() == b""


def test_lines_may_end_as_on_windows_and_the_last_one_not_at_all(
    gptflow: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf"one"\r\n\r\n  \r\n"two"\r\n"three"')
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 0
    assert [line["custom_id"] for line in _read(tmp_path / "out.jsonl")] == [
        "line-1",
        "line-4",
        "line-5",
    ]


def test_a_custom_id_that_is_used_twice_fails_the_second_row(gptflow: Any, tmp_path: Path) -> None:
    _write(
        tmp_path / "in.jsonl",
        {"id": "a", "text": "Hi"},
        {"id": "b", "text": "Hi"},
        {"id": "a", "text": "Ho"},
        {"id": "line-5", "text": "Hm"},
        "a row that would be called line-5",
    )
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 9
    lines = _read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == ["a", "b", "line-3", "line-5", "line-5"]
    assert [line["error"] is None for line in lines] == [True, True, False, True, False]
    assert lines[2]["error"]["message"] == "Line 3 repeats the custom_id 'a' of line 1."


def test_a_line_that_is_too_long_is_never_read_as_a_whole(
    gptflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFLOW_MAX_PAYLOAD", "1024")
    long = json.dumps("x" * (3 << 20))
    fits = json.dumps("y" * 1022)
    (tmp_path / "in.jsonl").write_text(f'"a"\r\n{long}\r\n{fits}\r\n{long}', newline="")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    lines = _read(tmp_path / "out.jsonl")
    assert outcome.code == 9
    assert [line["error"] is None for line in lines] == [True, False, True, False]
    assert f"Line 2 has {len(long)} bytes; 1024 are taken." in lines[1]["error"]["message"]


def test_a_row_that_is_nested_too_deeply_to_be_sent_fails_alone(
    gptflow: Any, tmp_path: Path
) -> None:
    deep = "[" * 600 + "]" * 600
    (tmp_path / "in.jsonl").write_text(f'{{"id": "deep", "text": {deep}}}\n"fine"\n')
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
    assert outcome.code == 9
    deep_line, fine_line = _read(tmp_path / "out.jsonl")
    assert deep_line["custom_id"] == "deep"
    assert deep_line["error"]["code"] == "GF300"
    assert fine_line["error"] is None


def test_the_output_may_be_no_file(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a")
    outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "/dev/null", "--local")
    assert outcome.code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["in.jsonl"]


def test_the_finished_output_stands_alone(gptflow: Any, tmp_path: Path) -> None:
    _write(tmp_path / "in.jsonl", "a")
    assert gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local").code == 0
    assert [path.name for path in tmp_path.iterdir() if "out.jsonl" in path.name] == ["out.jsonl"]


class TestResume:
    """Going on with an output that is not complete."""

    ROWS = tuple({"id": f"r{n}", "text": f"Text {n}"} for n in range(10))

    @pytest.fixture
    def broken(self, gptflow: Any, tmp_path: Path) -> list[dict[str, Any]]:
        """An output of which the last rows are missing, one is cut, and one was cancelled."""
        _write(tmp_path / "in.jsonl", *self.ROWS)
        gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
        lines = _read(tmp_path / "out.jsonl")
        lines[0]["output"]["text"] = "This one is kept."
        cancelled = lines[5] | {"output": None, "error": {"code": "GF503", "message": "x"}}
        kept = [lines[1], lines[0], cancelled, *lines[2:5]]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        (tmp_path / "out.jsonl").write_text(text + json.dumps(lines[6])[:40])
        digest = hashlib.sha256((tmp_path / "in.jsonl").read_bytes()).hexdigest()
        note = BrokenOff(
            batch=new_id("batch"),
            task="text.generate",
            tenant="default",
            seed=None,
            sha256=digest,
            begun=0,
        )
        note.write(tmp_path / "out.jsonl")
        return lines

    def resume(self, gptflow: Any, *more: str) -> Any:
        return gptflow(
            "submit",
            "text.generate",
            "in.jsonl",
            "--out",
            "out.jsonl",
            "--resume",
            "--local",
            *more,
        )

    def test_only_rows_without_a_result_are_run(
        self, gptflow: Any, tmp_path: Path, broken: list[dict[str, Any]]
    ) -> None:
        outcome = self.resume(gptflow)
        assert outcome.code == 0
        lines = _read(tmp_path / "out.jsonl")
        assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(10)]
        assert lines[0]["output"]["text"] == "This one is kept."
        assert all(line["error"] is None for line in lines)
        assert "10 rows: 10 done, 0 failed" in outcome.err
        assert not (tmp_path / "out.jsonl.batch").exists()

    def test_a_complete_output_has_nothing_to_run(self, gptflow: Any, tmp_path: Path) -> None:
        _write(tmp_path / "in.jsonl", *self.ROWS)
        gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
        lines = _read(tmp_path / "out.jsonl")
        marked = [line | {"output": {"text": "kept"}} for line in lines]
        _write(tmp_path / "out.jsonl", *marked)
        assert self.resume(gptflow).code == 0
        assert _read(tmp_path / "out.jsonl") == marked

    def test_failed_rows_have_a_result_too(self, gptflow: Any, tmp_path: Path) -> None:
        (tmp_path / "in.jsonl").write_text('{"id": "a", "text": " "}\n"b"\nnot json\n')
        gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
        before = _read(tmp_path / "out.jsonl")
        outcome = self.resume(gptflow, "--errors", "bad.jsonl")
        assert outcome.code == 9
        assert _read(tmp_path / "out.jsonl") == before
        assert [line["custom_id"] for line in _read(tmp_path / "bad.jsonl")] == ["a", "line-3"]

    def test_it_is_not_begun_again_by_mistake(
        self, gptflow: Any, tmp_path: Path, broken: list[dict[str, Any]]
    ) -> None:
        before = (tmp_path / "out.jsonl").read_bytes()
        outcome = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
        assert outcome.code == 2
        assert "--resume" in outcome.err
        assert (tmp_path / "out.jsonl").read_bytes() == before
        (tmp_path / "out.jsonl").unlink()
        again = gptflow("submit", "text.generate", "in.jsonl", "--out", "out.jsonl", "--local")
        assert again.code == 0

    def test_another_input_is_refused(
        self, gptflow: Any, tmp_path: Path, broken: list[dict[str, Any]]
    ) -> None:
        before = (tmp_path / "out.jsonl").read_bytes()
        _write(tmp_path / "in.jsonl", *self.ROWS, "one more")
        outcome = self.resume(gptflow)
        assert outcome.code == 3
        assert "not the file" in outcome.err
        assert (tmp_path / "out.jsonl").read_bytes() == before

    def test_another_task_is_refused(self, gptflow: Any, broken: list[dict[str, Any]]) -> None:
        args = ("in.jsonl", "--out", "out.jsonl", "--resume", "--local")
        assert gptflow("submit", "text.chat", *args).code == 2

    def test_a_file_that_is_no_output_is_refused_and_kept(
        self, gptflow: Any, tmp_path: Path
    ) -> None:
        _write(tmp_path / "in.jsonl", *self.ROWS)
        (tmp_path / "out.jsonl").write_text("my notes\nmore of them\n")
        assert self.resume(gptflow).code == 3
        assert (tmp_path / "out.jsonl").read_text() == "my notes\nmore of them\n"

    def test_without_an_output_it_begins(self, gptflow: Any, tmp_path: Path) -> None:
        _write(tmp_path / "in.jsonl", *self.ROWS)
        assert self.resume(gptflow).code == 0
        assert len(_read(tmp_path / "out.jsonl")) == 10

    @pytest.mark.parametrize("args", [("in.jsonl",), ("-", "--out", "out.jsonl")])
    def test_it_needs_an_output_and_rows_that_can_be_read_again(
        self, gptflow: Any, tmp_path: Path, args: tuple[str, ...]
    ) -> None:
        _write(tmp_path / "in.jsonl", *self.ROWS)
        assert gptflow("submit", "text.generate", *args, "--resume", "--local").code == 2
