"""What is shown to Prometheus, and that dashboard, alerts and documents know its names."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gptflow.errors import BrokerUnavailable
from gptflow.histogram import Histogram
from gptflow.queue import metrics
from gptflow.queue.catalogue import ALL, LEDGER, WORKER
from gptflow.queue.dashboard import dashboard
from gptflow.queue.overview import Overview
from gptflow.queue.tallies import Tallies

ROOT = Path(__file__).parents[3]
NAME = re.compile(r"\bgptflow_[a-z_]+")


def overview(**given: Any) -> Overview:
    values: dict[str, Any] = {
        "depth": {"interactive": 1, "standard": 20, "batch": 0},
        "oldest": {"interactive": 0.5, "standard": 7.0, "batch": 0.0},
        "rung": 2,
        "running": 3,
        "delayed": 4,
        "suspects": 5,
        "dead": 6,
        "pace": 3.5,
        "totals": {"accepted:batch": 9, "ended:done": 8, "expired_leases": 2, "refused_results": 1},
        "workers": (),
    }
    return Overview(**values | given)


def engine_stats() -> dict[str, Any]:
    histogram = Histogram((0.1, 1.0))
    histogram.add(0.5)
    return {
        "first_token_seconds": histogram.as_dict(),
        "further_token_seconds": histogram.as_dict(),
        "tokens_per_second": 120.0,
        "occupancy": 0.5,
        "steps": 10,
        "prefix_hits": 4,
        "preemptions": 1,
        "tokens_in": 100,
        "cached_tokens": 60,
        "tokens_out": 30,
        "running": 2,
        "waiting": 1,
        "slots": 64,
        "slots_used": 2,
        "failures": {"GF504": 2},
        "kv_tokens_reserved": 256,
        "kv_tokens_limit": 1024,
        "dtype": "float32",
        "device": "cpu",
    }


def described(**engine: Any) -> dict[str, Any]:
    return {
        "in_flight": 2,
        "messages": 1,
        "room": 10,
        "leases": 1,
        "round_trips": 7,
        "healthy": True,
        "stalled": 0.0,
        "model": "tiny",
        "engine": engine,
    }


def samples(*collectors: Any) -> dict[tuple[str, ...], float]:
    """Each sample's value, by its name and the values of its labels, by their names."""
    exposition = metrics.Exposition()
    for collector in collectors:
        exposition.add(collector)
    text = exposition.render().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("gptflow_")
    }


def base_names(found: dict[tuple[str, ...], float]) -> set[str]:
    histograms = {m.name for m in ALL.values() if m.kind == "histogram"}
    bases = {f"{name}{part}": name for name in histograms for part in ("_bucket", "_sum", "_count")}
    return {bases.get(name, name) for name, *_ in found}


def test_a_worker_shows_every_metric_of_the_catalogue() -> None:
    tallies = Tallies()
    tallies.start("text", "batch", 2.0)
    tallies.end("text", "batch", [("done", 0.2), ("done", 0.3), ("refused", None)])
    worker = metrics.WorkerCollector("app", lambda: described(**engine_stats()), tallies)
    found = samples(worker)
    assert base_names(found) == {metric.name for metric in WORKER}
    assert found["gptflow_jobs_total", "batch", "done", "text"] == 2
    assert found["gptflow_jobs_total", "batch", "refused", "text"] == 1
    assert found["gptflow_job_run_seconds_count", "batch", "text"] == 2
    assert found["gptflow_job_run_seconds_sum", "batch", "text"] == pytest.approx(0.5)
    assert found["gptflow_time_to_first_token_seconds_bucket", "0.1"] == 0
    assert found["gptflow_time_to_first_token_seconds_bucket", "+Inf"] == 1
    assert found["gptflow_tokens_total", "prompt_cached"] == 60
    assert found["gptflow_kv_cache_usage_ratio",] == 0.25
    assert found["gptflow_engine_failures_total", "GF504"] == 2


def test_an_engine_that_counts_little_leaves_the_rest_out() -> None:
    found = samples(metrics.WorkerCollector("app", lambda: described(running=0), Tallies()))
    assert found["gptflow_leases_held",] == 1
    assert ("gptflow_engine_steps_total",) not in found
    assert "gptflow_kv_cache_usage_ratio" not in base_names(found)


def test_the_ledger_shows_every_metric_of_the_catalogue() -> None:
    full = {"refused:batch": 1, "ended_items": 3, "retried": 1, "handed_back": 1}
    seen = overview(totals={**overview().totals, **full, "lost_doorbells": 1})
    found = samples(metrics.LedgerCollector(lambda: seen))
    assert base_names(found) == {metric.name for metric in LEDGER}
    assert found["gptflow_queue_depth", "standard"] == 20
    assert found["gptflow_queue_oldest_age_seconds", "standard"] == 7
    assert found["gptflow_queue_backlog_seconds",] == pytest.approx(21 / 3.5)
    assert found["gptflow_leases_expired_total",] == 2
    assert found["gptflow_dead_letters",] == 6


def test_the_server_is_asked_once_a_second_however_often_it_is_scraped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def read() -> Overview:
        asked.append(1)
        return overview()

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    collector = metrics.LedgerCollector(read)
    for _ in range(5):
        list(collector.collect())
    assert len(asked) == 1
    now += 1.1
    list(collector.collect())
    assert len(asked) == 2


def test_a_ledger_that_does_not_answer_is_a_metric() -> None:
    def read() -> Overview:
        raise BrokerUnavailable("no")

    found = samples(metrics.LedgerCollector(read))
    assert found == {("gptflow_ledger_up",): 0}


def test_no_label_names_a_tenant_or_a_job() -> None:
    labels = {label for metric in ALL.values() for label in metric.labels}
    assert labels == {
        *("plugin", "class", "outcome", "kind", "state", "code"),
        *("version", "app", "model", "dtype", "device"),
    }


def test_names_tell_what_they_are() -> None:
    for metric in ALL.values():
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")


def known(name: str) -> bool:
    return re.sub(r"_(bucket|sum|count)$", "", name) in ALL or name in ALL


def test_the_dashboard_is_the_one_that_the_names_make() -> None:
    stored = json.loads((ROOT / "docs/grafana-dashboard.json").read_text(encoding="utf-8"))
    assert stored == dashboard(), "python -m gptflow.queue.dashboard > docs/grafana-dashboard.json"
    panels = stored["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(NAME.search(query) for query in queries)
    assert all(query.count("(") == query.count(")") for query in queries)


def test_the_alerts_are_about_metrics_that_exist_and_each_is_explained() -> None:
    alerts = yaml.safe_load((ROOT / "docs/prometheus-alerts.yaml").read_text(encoding="utf-8"))
    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert {"GPTFlowDeadLetters", "GPTFlowNoWorkers", "GPTFlowLeasesExpire"} <= {
        rule["alert"] for rule in rules
    }
    for rule in rules:
        names = NAME.findall(rule["expr"])
        assert names, rule
        assert all(known(name) for name in names), rule
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in operations


def test_the_document_has_every_metric_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`(gptflow_[a-z_]+)", text) if name in ALL}
    assert named == set(ALL)
    assert all(known(name) for name in NAME.findall(text) if not name.startswith("gptflow_work"))
