"""What `gptflow bench engine` measures."""

from __future__ import annotations

import pytest

from gptflow.engine import bench


def test_the_benchmark(tiny, make_engine):
    assert bench.workload("label", 3, seed=1) == bench.workload("label", 3, seed=1)
    mixed = bench.workload("mixed", 2, vocabulary=400)
    assert all(128 <= len(item["ids"]) <= 256 and 32 <= item["new"] <= 96 for item in mixed)
    assert mixed[0]["ids"][:96] == mixed[1]["ids"][:96] != mixed[0]["ids"][96:192]
    items = [{"ids": item["ids"][:50], "new": 3} for item in mixed]
    row = bench.run(make_engine(), items, "mixed")
    assert list(row) == ["engine", "kind", "n", "seconds", "out_tok_s", "in_tok_s", "req_s"]
    assert row["kind"] == "mixed"
    assert row["n"] == 2


def test_the_benchmark_repeats_with_new_requests_and_tells_latencies(tiny, make_engine):
    seeds = []

    def draw(seed):
        seeds.append(seed)
        return [{"ids": list(tiny.prompt_ids(20, seed)), "new": 4} for _ in range(3)]

    row = bench.measure(make_engine(), draw, "own", repeat=2)
    assert len(set(seeds)) == len(seeds) == 4  # the warm-up, two counted, one listened to
    assert row["repeat"] == 2
    assert row["out_tok_s"] == pytest.approx(4 * row["req_s"], rel=0.02, abs=0.5)
    assert 0 < row["ttft_ms_p50"] <= row["ttft_ms_p99"]
    assert 0 <= row["tpot_ms_p50"] <= row["tpot_ms_p99"]
    assert row["peak_rss_mb"] > 50


def test_a_benchmark_of_single_tokens_has_no_time_per_token(tiny, make_engine):
    row = bench.measure(
        make_engine(), lambda seed: [{"ids": [11, 12, 13], "new": 1}], "own", warm_up=False
    )
    assert row["tpot_ms_p50"] is row["tpot_ms_p99"] is None
    assert row["ttft_ms_p99"] > 0
