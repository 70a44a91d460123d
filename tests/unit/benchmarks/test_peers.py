"""The comparison with other engines: who takes part, what is computed, and who may run."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from benchmarks.peers import report
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.report import Round
from benchmarks.peers.roster import PEERS, Entrant
from gptflow.engine.bench import workload

FACTS = {
    "machine": {
        "date": "2026-01-01 00:00 UTC",
        "cpu": "A CPU",
        "cores": 2,
        "flags": ["avx2"],
        "copy_gb_s": 30.0,
        "gemm_gflop_s": {"float32": {1: 5.0, 256: 150.0}},
    },
    "model": "a-model",
    "reference": "ours:auto",
    "rounds": 3,
    "engines": {"ours:auto": {"version": "1", "settings": {"slots": 64}, "load_seconds": 2.0}},
    "failed": {"gone:int8": "it ended"},
}


def rounds() -> list[Round]:
    """The other is first twice as slow, then four times, while the machine slows down."""
    rates = {"ours:auto": [40, 20, 20], "other:int8": [20, 5, 5]}
    return [
        Round(engine, "label", number, 10, 10 / rate, rate, (7, 8 + (engine != "ours:auto")))
        for engine, own in rates.items()
        for number, rate in enumerate(own)
    ]


def test_ratios_are_taken_within_a_round():
    ours, other = report.summarise(rounds(), "ours:auto")
    assert (ours.engine, ours.median, ours.ratio) == ("ours:auto", 20, 1)
    assert (other.median, other.low, other.high, other.ratio) == (5, 5, 20, 4)
    assert other.same_first == 0.5


def test_the_report_names_units_ratios_and_who_is_missing():
    page = report.markdown(report.summarise(rounds(), "ours:auto"), FACTS)
    assert "| other:int8 | 10 | 5.0 (5.0–20.0) | 4.00 | 50% |" in page
    assert "requests/s" in page
    assert "Not measured: gone:int8: it ended" in page


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib", reason="needs gptflow[bench]")
    report.picture(report.summarise(rounds(), "ours:auto"), "ours:auto", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_entrant_is_a_name_and_a_precision():
    assert Entrant.parse("openvino_genai").precision == "int8"
    assert Entrant.parse("vllm_cpu:float32").precision == "float32"
    assert Entrant.parse("transformers_one").precision in ("bfloat16", "float32")
    with pytest.raises(click.BadParameter, match="none of"):
        Entrant.parse("vllm")
    with pytest.raises(click.BadParameter, match="int8, fp16"):
        Entrant.parse("openvino_genai:int4")


def test_every_peer_has_a_module():
    folder = Path(report.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in PEERS)


def test_a_peer_without_its_environment_says_what_to_type(tmp_path):
    with pytest.raises(PeerFailed, match=r"benchmarks\.peers setup vllm_cpu"):
        start("vllm_cpu", tmp_path, tmp_path)


def test_a_peer_that_cannot_load_names_its_log(tmp_path):
    with pytest.raises(PeerFailed, match=r"code 1; see .*engine\.log"):
        start("gptflow_engine:float32", tmp_path, tmp_path)
    assert "ModelNotFound" in (tmp_path / "engine.log").read_text()


@pytest.mark.model
def test_a_peer_runs_only_while_it_is_measured(tmp_path):
    from benchmarks.peers.environments import find_model

    process = start("gptflow_engine:float32", tmp_path, find_model("smollm2-135m-instruct"))
    try:
        assert process.ready["settings"]["dtype"] == "float32"
        assert state(process) == "T"
        items = [{"ids": item["ids"][:20], "new": 2} for item in workload("mixed", 2)]
        measured = process.measure(items, items)
        assert measured.seconds > 0
        assert len(measured.first) == 2
        assert state(process) == "T"
    finally:
        process.close()


def start(entrant: str, folder: Path, model: Path) -> PeerProcess:
    return PeerProcess(
        Entrant.parse(entrant),
        folder=folder,
        model=model,
        threads=1,
        log=folder / "engine.log",
        limit=120,
    )


def state(process: PeerProcess) -> str:
    """The letter by which the system says whether a process sleeps, runs or is stopped."""
    import os

    pid = process._process.pid
    os.waitpid(pid, os.WUNTRACED)  # until the signal has arrived
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
