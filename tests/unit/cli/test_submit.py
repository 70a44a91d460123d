"""`gptflow submit`: a file of rows in, a file of results out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
