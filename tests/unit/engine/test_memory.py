"""Memory: what is settled before the engine takes a request."""

from __future__ import annotations

import pytest
import torch

from gptflow.engine import memory
from gptflow.errors import ConfigError, InputTooLong
from gptflow.heads import Generate
from gptflow.request import Request

CPU = torch.device("cpu")
MIB = 1 << 20
GIB = 1 << 30
# SmolLM2-135M in float32: 30 layers of 3 heads of 64 numbers, keys and values.
SMOLLM = {"slots": 64, "slot_tokens": 2048, "token_bytes": 46_080, "other_bytes": 600 * MIB}


def budget(**changes):
    settings = SMOLLM | {"asked": None, "available": 16 * GIB, "lazy": True} | changes
    return memory.kv_budget(**settings)


def test_all_slots_may_be_full_where_there_is_enough():
    assert budget() == 64 * 2048
    assert budget(available=None) == 64 * 2048


def test_the_defaults_work_on_a_small_machine_with_what_fits():
    tokens = budget(available=2560 * MIB)  # 4 GB, less the system and the weights
    assert 16 * 2048 < tokens < 64 * 2048
    assert tokens * 46_080 <= 0.9 * 2560 * MIB - 600 * MIB


def test_a_limit_of_ones_own():
    assert budget(asked=GIB) == GIB // 46_080
    assert budget(asked=100 * GIB) == 64 * 2048


@pytest.mark.parametrize(
    ("changes", "named", "setting"),
    [
        ({"available": 700 * MIB}, ("90 MiB", "600 MiB", "700 MiB", "30 MiB"), "SLOT_TOKENS"),
        ({"asked": 8 * GIB, "available": 4 * GIB}, ("5,760 MiB", "4,096 MiB"), "KV_BYTES"),
        ({"lazy": False, "available": 4 * GIB}, ("5,760 MiB", "64 slots"), "GPTFLOW_SLOTS"),
        ({"asked": 50 * MIB}, ("50 MiB", "90 MiB", "2048 tokens"), "slot_tokens"),
    ],
)
def test_too_little_is_refused_with_the_numbers(changes, named, setting):
    with pytest.raises(ConfigError) as refusal:
        budget(**changes)
    for words in (*named, setting):
        assert words in str(refusal.value)


def system(folder, *, free, cgroup="", **files):
    proc, groups = folder / "proc", folder / "groups"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {free // 1024} kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = groups / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return memory.available(CPU, proc=proc, groups=groups)


def test_what_the_machine_has_available(tmp_path):
    assert system(tmp_path, free=8 * GIB) == 8 * GIB


def test_a_control_group_that_leaves_less(tmp_path):
    files = {
        "pod__memory-max": "max",
        "pod__box__memory-max": 3 * GIB,
        "pod__box__memory-current": 2 * GIB,
        "pod__box__memory-stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    room = system(tmp_path, free=8 * GIB, cgroup="0::/pod/box/leaf\n", **files)
    assert room == 3 * GIB // 2


def test_a_control_group_of_the_first_version_in_a_container(tmp_path):
    files = {
        "memory__memory-limit_in_bytes": GIB,
        "memory__memory-usage_in_bytes": GIB // 4,
        "memory__memory-stat": "total_inactive_file 0\n",
    }
    lines = "9:name=systemd:/x\n4:memory:/docker/abc\n0::/\n"
    assert system(tmp_path, free=8 * GIB, cgroup=lines, **files) == 3 * GIB // 4


def test_no_limit_is_no_limit(tmp_path):
    files = {"memory__memory-limit_in_bytes": 9223372036854771712}
    assert system(tmp_path, free=GIB, cgroup="4:memory:/\n", **files) == GIB


def test_a_system_that_does_not_tell(tmp_path):
    assert memory.available(CPU, proc=tmp_path / "none") is None


def test_this_machine_tells_something_sensible():
    assert memory.available(CPU) is None or memory.available(CPU) > 16 * MIB


def test_the_engine_refuses_to_start_without_the_memory(make_engine, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10 * MIB)
    with pytest.raises(ConfigError, match="SLOT_TOKENS"):
        make_engine(prefix_bytes=4 * MIB)


def test_the_engine_serves_more_than_fits_at_once_one_after_another(tiny, make_engine):
    token = make_engine()._slots.bytes_per_token
    engine = make_engine(slots=8, kv_bytes=300 * token)
    assert engine.stats()["kv_tokens_limit"] == 300
    ids = tiny.prompt_ids(60)
    requests = [
        Request(prompt=ids, head=Generate(max_tokens=40), ignore_eos=True) for _ in range(9)
    ]
    futures = [engine.submit(request) for request in requests]
    for future in futures:
        answer = future.result(60)
        assert answer.continuations[0].tokens == tiny.greedy("llama", ids, 40)
    assert engine.stats()["peak_running"] <= 3
    assert engine.stats()["kv_tokens_reserved"] == 0
    long = Request(prompt=tiny.prompt_ids(257), head=Generate(max_tokens=1))
    assert isinstance(engine.submit(long).exception(30), InputTooLong)
