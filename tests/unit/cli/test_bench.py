"""`gptflow bench engine` on the scripted engine."""

from __future__ import annotations

import json


def test_each_workload_is_one_line_of_json(gptflow):
    outcome = gptflow("bench", "engine", "-w", "single", "-w", "label", "-n", "3", "--json")
    assert outcome.code == 0
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(row["kind"], row["n"]) for row in rows] == [("single", 1), ("label", 3)]
    assert all(row["req_s"] > 0 and row["repeat"] == 1 for row in rows)


def test_a_table_names_the_units(gptflow):
    outcome = gptflow("bench", "engine", "-w", "label", "-n", "2")
    assert outcome.code == 0
    assert "TTFT p50 ms" in outcome.out
    assert "label" in outcome.out


def test_requests_are_replayed_from_a_file(gptflow, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"ids": [5, 6, 7], "new": 2}\n{"ids": [8], "new": 1}\n', encoding="utf-8")
    row = gptflow("bench", "engine", "--requests", str(path), "--json").json
    assert (row["kind"], row["n"]) == ("mine", 2)


def test_a_malformed_request_is_named_by_its_line(gptflow, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"ids": [5], "new": 2}\n{"ids": 5}\n', encoding="utf-8")
    outcome = gptflow("bench", "engine", "--requests", str(path))
    assert outcome.code == 3
    assert "line 2" in outcome.err


def test_an_unknown_dtype_is_refused(gptflow):
    outcome = gptflow("bench", "engine", "--dtype", "float3")
    assert outcome.code == 10
    assert "dtype" in outcome.err
