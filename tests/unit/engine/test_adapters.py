"""Adapters come, change and go while requests run; a folder that is not right is refused."""

from __future__ import annotations

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptflow.errors import (
    AdapterCorrupt,
    AdapterMemoryFull,
    AdapterMismatch,
    AdapterNotFound,
    AdapterTooLarge,
)
from gptflow.heads import Choose, Generate
from gptflow.prompt import RenderedPrompt
from gptflow.request import Request

Q = "model.layers.0.self_attn.q_proj"


def ask(ids, adapter, new=6, **more):
    head = Generate(max_tokens=new, adapter=adapter)
    return Request(prompt=ids, head=head, ignore_eos=True, **more)


def tokens(future):
    return future.result(60).continuations[0].tokens


def test_an_unknown_adapter_fails_its_request_alone(tiny, make_engine, tmp_path):
    engine = make_engine()
    engine.load_adapter("known", tiny.write_lora(tmp_path))
    ids = tiny.prompt_ids(20)
    good = engine.submit(ask(ids, None))
    bad = engine.submit(ask(ids, "unknown"))
    assert isinstance(bad.exception(30), AdapterNotFound)
    assert "known" in str(bad.exception())
    assert tokens(good) == tiny.greedy("llama", ids, 6)
    with pytest.raises(AdapterNotFound):
        engine.unload_adapter("unknown")
    with pytest.raises(AdapterNotFound):
        engine.load_adapter("a", tmp_path / "nowhere")


def test_an_answer_names_its_adapter(tiny, make_engine, tmp_path):
    engine = make_engine()
    info = engine.load_adapter("a", tiny.write_lora(tmp_path))
    assert engine.adapters() == {"a": info}
    assert info.rank == 4
    answer = engine.submit(ask(tiny.prompt_ids(9), "a")).result(30)
    assert answer.adapter == f"a@{info.sha256}"


def test_idle_adapters_give_way_and_come_back(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(6)]
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=3 * size)
    for i, folder in enumerate(folders):
        engine.load_adapter(f"a{i}", folder)
    assert engine.stats()["adapter_bytes"] == 3 * size
    resident = [info.resident for info in engine.adapters().values()]
    assert resident == [False] * 3 + [True] * 3
    ids = tiny.prompt_ids(20)
    expected = [tiny.greedy("llama", ids, 6, tiny.merged("llama", f)) for f in folders]
    for i in (0, 5, 1, 4, 2, 3, 0):
        assert tokens(engine.submit(ask(ids, f"a{i}"))) == expected[i]
        assert engine.stats()["adapter_bytes"] <= 3 * size
    assert engine.stats()["adapter_evictions"] >= 6


def test_adapters_in_use_do_not_give_way(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(2)]
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=size)
    engine.load_adapter("a", folders[0])
    begun = threading.Event()
    ids = tiny.prompt_ids(20)
    running = engine.submit(ask(ids, "a", 200, on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    with pytest.raises(AdapterMemoryFull) as caught:
        engine.load_adapter("b", folders[1])
    assert caught.value.retryable
    expected = tiny.greedy("llama", ids, 200, tiny.merged("llama", folders[0]))
    assert tokens(running) == expected
    engine.load_adapter("b", folders[1])
    assert [info.resident for info in engine.adapters().values()] == [False, True]


def test_eviction_and_swaps_under_load_mix_nothing_up(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(5)]
    ids = tiny.prompt_ids(15)
    expected = {}
    probe = make_engine()
    for folder in folders:
        info = probe.load_adapter("a", folder)
        expected[info.sha256] = tiny.greedy("llama", ids, 8, tiny.merged("llama", folder))
    # Room for what four clients use and one more to swap in, not for all that is loaded.
    engine = make_engine(adapter_bytes=5 * info.nbytes, slots=4)
    for i in range(4):
        engine.load_adapter(f"a{i}", folders[i])
    engine.load_adapter("swapped", folders[4])
    stop = threading.Event()

    def swap():
        at = 0
        while not stop.is_set():
            at += 1
            engine.load_adapter("swapped", folders[at % 5])
        return at

    def client(number):
        served = []
        for i in range(12):
            alias = "swapped" if i % 2 else f"a{(number + i) % 4}"
            answer = engine.submit(ask(ids, alias, 8)).result(60)
            served.append((answer.adapter.partition("@")[2], answer.continuations[0].tokens))
        return served

    with ThreadPoolExecutor(5) as pool:
        swapping = pool.submit(swap)
        clients = [pool.submit(client, n) for n in range(4)]
        try:
            served = [pair for each in clients for pair in each.result(120)]
        finally:
            stop.set()
        assert swapping.result(60) > 1
    assert len({sha for sha, _ in served}) >= 4
    for sha, output in served:
        assert output == expected[sha]
    assert engine.stats()["slots_used"] == 0


def test_unloading_frees_what_was_computed_with_it(tiny, make_engine, tmp_path):
    engine = make_engine()
    engine.load_adapter("a", tiny.write_lora(tmp_path))
    ids = tiny.prompt_ids(40)
    for _ in range(3):
        answer = engine.submit(ask(ids, "a")).result(30)
    assert answer.usage.cached >= 30
    before = engine.stats()
    assert before["prefix_bytes"] > 0
    engine.unload_adapter("a")
    assert tokens(engine.submit(ask(tiny.prompt_ids(5), None)))  # a step later
    assert engine.stats()["prefix_bytes"] == 0
    assert engine.stats()["adapter_bytes"] == 0
    assert isinstance(engine.submit(ask(ids, "a")).exception(30), AdapterNotFound)


def test_scores_that_are_kept_keep_no_adapter(tiny, make_engine, tmp_path):
    engine = make_engine()
    folder = tiny.write_lora(tmp_path)
    size = engine.load_adapter("a", folder).nbytes
    head = Choose(labels=("good", "bad"), adapter="a")
    asked = Request(prompt=tiny.prompt_ids(20), head=head, baseline=RenderedPrompt.plain("N/A"))
    engine.submit(asked).result(30)
    engine.load_adapter("a", folder)
    assert tokens(engine.submit(ask(tiny.prompt_ids(5), "a")))  # a step later
    gc.collect()
    stats = engine.stats()
    assert (stats["baselines"], stats["adapter_bytes"]) == (1, size)


def test_a_cancelled_request_lets_go_of_its_adapter(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(2)]
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=size)
    engine.load_adapter("a", folders[0])
    begun = threading.Event()
    running = engine.submit(ask(tiny.prompt_ids(20), "a", 200, on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    assert running.cancel()
    long = engine.submit(ask(tiny.prompt_ids(256), "a"))  # refused while it is prepared
    assert long.exception(30) is not None
    engine.load_adapter("b", folders[1])


def test_a_request_that_is_cancelled_while_its_adapter_is_read(
    tiny, make_engine, tmp_path, monkeypatch
):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(3)]
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=size)
    engine.load_adapter("a", folders[0])
    engine.load_adapter("b", folders[1])  # in the place of the other
    reader, reading, go = engine._adapters._reader, threading.Event(), threading.Event()
    read = reader.read

    def slow(alias, folder):
        reading.set()
        assert go.wait(30)
        return read(alias, folder)

    monkeypatch.setattr(reader, "read", slow)
    asked = engine.submit(ask(tiny.prompt_ids(20), "a"))
    assert reading.wait(30)
    assert asked.cancel()
    go.set()
    assert tokens(engine.submit(ask(tiny.prompt_ids(5), None)))  # a step later
    assert [entry.users for entry in engine._adapters._entries.values()] == [0, 0]
    assert engine.load_adapter("c", folders[2])


def test_two_hundred_adapters_answer_where_four_fit(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), rank=1, seed=i) for i in range(220)]
    ids = tiny.prompt_ids(12)
    roomy = make_engine(model=tiny.make_model("llama", "roomy"))
    for i, folder in enumerate(folders):
        size = roomy.load_adapter(f"a{i}", folder).nbytes
    tight = make_engine(adapter_bytes=4 * size)
    for i, folder in enumerate(folders):
        tight.load_adapter(f"a{i}", folder)
    classes = ("interactive", "standard", "batch")

    def ask_all(engine):
        return [
            engine.submit(ask(ids, f"a{i}", 5, job_class=classes[i % 3], id=f"r{i}"))
            for i in range(len(folders))
        ]

    futures = ask_all(tight)
    most = 0
    for future in futures:
        future.result(60)
        most = max(most, tight.stats()["adapter_bytes"])
    assert most <= 4 * size
    found = [tokens(future) for future in futures]
    assert found == [tokens(future) for future in ask_all(roomy)]
    assert len(set(found)) > 100
    assert found[7] == tiny.greedy("llama", ids, 5, tiny.merged("llama", folders[7]))
    assert tight.stats()["failures"] == {}
    assert tight.stats()["adapter_reloads"] >= 200


def test_two_hundred_adapters_come_and_go_while_others_are_served(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), rank=1, seed=i) for i in range(200)]
    ids = tiny.prompt_ids(12)
    roomy = make_engine(model=tiny.make_model("llama", "roomy"))
    for i, folder in enumerate(folders):
        size = roomy.load_adapter(f"a{i}", folder).nbytes
    asked = [roomy.submit(ask(ids, f"a{i}", 5)) for i in range(len(folders))]
    expected = [tokens(future) for future in asked]
    assert len(set(expected)) > 100
    kept = tiny.write_lora(tmp_path / "kept", seed=999)
    limit = 6 * size + make_engine().load_adapter("a", kept).nbytes
    engine = make_engine(adapter_bytes=limit)
    engine.load_adapter("kept", kept)
    told = threading.Event()
    answers, longs, most = [], [], 0
    for i, folder in enumerate(folders):
        if i % 40 == 0:  # one runs all the time, and is told of each token
            told.clear()
            longs.append(engine.submit(ask(ids, "kept", 200, on_delta=lambda _: told.set())))
            assert told.wait(30)
        engine.load_adapter(f"a{i}", folder)
        answers.append(engine.submit(ask(ids, f"a{i}", 5)))
        engine.unload_adapter(f"a{i}")  # the request has come, and most likely not begun
        most = max(most, engine.stats()["adapter_bytes"])
        if i >= 5:
            answers[i - 5].result(60)
    assert [tokens(answer) for answer in answers] == expected
    merged = tiny.greedy("llama", ids, 200, tiny.merged("llama", kept))
    assert [tokens(long) for long in longs] == [merged] * 5
    assert size < most <= limit
    assert list(engine.adapters()) == ["kept"]
    assert tokens(engine.submit(ask(ids, None, 5)))  # a step later
    stats = engine.stats()
    assert stats["failures"] == {}
    assert stats["adapter_bytes"] == engine.adapters()["kept"].nbytes
    assert stats["slots_used"] == 0


def test_one_that_is_larger_than_the_limit_is_refused_for_good(tiny, make_engine, tmp_path):
    folder = tiny.write_lora(tmp_path)
    size = make_engine().load_adapter("a", folder).nbytes
    with pytest.raises(AdapterTooLarge) as caught:
        make_engine(adapter_bytes=size - 1).load_adapter("a", folder)
    assert not caught.value.retryable
    assert "adapter_bytes" in caught.value.hint
    assert make_engine(adapter_bytes=size).load_adapter("a", folder)


def test_those_that_wait_keep_the_version_that_they_came_for(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(3)]
    ids = tiny.prompt_ids(12)
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=2 * size, slots=1)
    engine.load_adapter("other", folders[2])
    pause = tiny.Pause(engine)
    first = engine.submit(ask(ids, "other", 20))
    assert pause.reached.wait(30)
    answers = []
    for folder in folders[:2]:
        engine.load_adapter("a", folder)
        answers.append(engine.submit(ask(ids, "a")))
    engine.unload_adapter("a")
    pause.release()
    for folder, future in zip(folders, answers, strict=False):
        assert tokens(future) == tiny.greedy("llama", ids, 6, tiny.merged("llama", folder))
    assert tokens(first)


def test_a_folder_that_changes_is_not_served(tiny, make_engine, tmp_path):
    folders = [tiny.write_lora(tmp_path / str(i), seed=i) for i in range(2)]
    size = make_engine().load_adapter("a", folders[0]).nbytes
    engine = make_engine(adapter_bytes=size)
    engine.load_adapter("a", folders[0])
    engine.load_adapter("b", folders[1])  # drops a
    tiny.write_lora(folders[0], seed=7)
    error = engine.submit(ask(tiny.prompt_ids(5), "a")).exception(30)
    assert isinstance(error, AdapterCorrupt)
    assert "changed" in str(error)


SCALES = {
    "plain": ({}, {}, lambda _: 2.0),
    "rslora": ({"use_rslora": True}, {}, lambda _: 8 / 2),
    "patterns": (
        {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {Q: 2},
        lambda m: 4.0 if m == Q else 0.75 if m.endswith("v_proj") else 2.0,
    ),
}


@pytest.mark.parametrize("kind", SCALES)
def test_scales(tiny, make_engine, tmp_path, kind):
    config, ranks, scale = SCALES[kind]
    folder = tiny.write_lora(tmp_path, ranks=ranks, **config)
    engine = make_engine()
    engine.load_adapter("a", folder)
    ids = tiny.prompt_ids(25)
    expected = tiny.greedy("llama", ids, 20, tiny.merged("llama", folder, scale))
    assert tokens(engine.submit(ask(ids, "a", 20))) == expected


TARGETS = {
    "names": (["q_proj", "down_proj"], {}, lambda m: m.endswith(("q_proj", "down_proj"))),
    "regex": (r".*\.1\..*(up|gate)_proj", {}, lambda m: ".1.mlp" in m and "down" not in m),
    "layers": (
        ["o_proj"], {"layers_to_transform": [1]}, lambda m: m == "model.layers.1.self_attn.o_proj",
    ),
    "excluded": (
        "all-linear", {"exclude_modules": ["v_proj"]}, lambda m: not m.endswith("v_proj"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_targets(tiny, make_engine, tmp_path, kind):
    target, config, named = TARGETS[kind]
    engine = make_engine()
    modules = [m for m in engine._lora.targets if named(m)]
    folder = tiny.write_lora(tmp_path, modules=modules, target_modules=target, **config)
    engine.load_adapter("a", folder)
    ids = tiny.prompt_ids(25)
    expected = tiny.greedy("llama", ids, 20, tiny.merged("llama", folder))
    assert tokens(engine.submit(ask(ids, "a", 20))) == expected


def change(folder, edit):
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def rename(tensors, old, new):
    for key in list(tensors):
        if old in key:
            tensors[key.replace(old, new)] = tensors.pop(key)


A = f"base_model.model.{Q}.lora_A.weight"
B = f"base_model.model.{Q}.lora_B.weight"

BROKEN_TENSORS = {
    "a NaN": (lambda t: t[A].view(-1)[0].fill_(float("nan")), AdapterCorrupt, "NaN"),
    "an infinity": (lambda t: t[B].view(-1)[0].fill_(float("inf")), AdapterCorrupt, "infinity"),
    "integers": (lambda t: t.update({A: t[A].int()}), AdapterCorrupt, "int32"),
    "half a pair": (lambda t: t.pop(B), AdapterCorrupt, "only"),
    "no pair": (lambda t: (t.pop(A), t.pop(B)), AdapterCorrupt, "lacks"),
    "a strange layer": (lambda t: rename(t, "layers.0", "layers.9"), AdapterMismatch, "layers.9"),
    "a strange width": (
        lambda t: t.update({A: torch.zeros(4, 47)}), AdapterMismatch, "the layer is 48 to",
    ),
    "a strange rank": (
        lambda t: t.update({A: torch.zeros(5, 48), B: torch.zeros(len(t[B]), 5)}),
        AdapterCorrupt, "rank",
    ),
    "another rank in B": (
        lambda t: t.update({B: torch.zeros(len(t[B]), 3)}), AdapterMismatch, "lora_B",
    ),
    "a whole module": (
        lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(400, 48)}),
        AdapterMismatch, "lm_head",
    ),
    "nothing": (lambda t: t.clear(), AdapterCorrupt, "no LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_broken_weights_are_refused(tiny, make_engine, tmp_path, kind):
    edit, error, told = BROKEN_TENSORS[kind]
    change(tiny.write_lora(tmp_path), edit)
    with pytest.raises(error, match=told):
        make_engine().load_adapter("a", tmp_path)


BROKEN_CONFIGS = {
    "DoRA": ({"use_dora": True}, AdapterMismatch, "use_dora"),
    "bias": ({"bias": "all"}, AdapterMismatch, "bias"),
    "lora_bias": ({"lora_bias": True}, AdapterMismatch, "lora_bias"),
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, AdapterMismatch, "LoRA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, AdapterMismatch, "pissa"),
    "something new": ({"use_magic": {"x": 1}}, AdapterMismatch, "use_magic"),
    "no rank": ({"r": 0}, AdapterCorrupt, "r is not"),
    "no alpha": ({"lora_alpha": "x"}, AdapterCorrupt, "lora_alpha"),
    "no targets": ({"target_modules": []}, AdapterCorrupt, "target_modules"),
    "other targets": ({"target_modules": ["q_proj"]}, AdapterCorrupt, "do not name"),
    "a bad regex": ({"target_modules": "(("}, AdapterCorrupt, "malformed"),
    "a bad pattern": ({"rank_pattern": {"((": 3}}, AdapterCorrupt, "malformed"),
    "a list of patterns": ({"alpha_pattern": [1]}, AdapterCorrupt, "alpha_pattern"),
}


@pytest.mark.parametrize("kind", BROKEN_CONFIGS)
def test_broken_settings_are_refused(tiny, make_engine, tmp_path, kind):
    config, error, told = BROKEN_CONFIGS[kind]
    with pytest.raises(error, match=told):
        make_engine().load_adapter("a", tiny.write_lora(tmp_path, **config))


def test_broken_files_are_refused(tiny, make_engine, tmp_path):
    engine = make_engine()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        folder = tiny.write_lora(tmp_path / file)
        (folder / file).write_bytes(b"\x08nonsense")
        with pytest.raises(AdapterCorrupt, match=file):
            engine.load_adapter("a", folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterCorrupt, match="adapter_model"):
        engine.load_adapter("a", folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterNotFound):
        engine.load_adapter("a", folder)
    assert engine.adapters() == {}


def test_a_manifest_is_held_to_its_word(tiny, make_engine, tmp_path):
    engine = make_engine()
    folder = tiny.write_manifest(tiny.write_lora(tmp_path))
    info = engine.load_adapter("a", folder)
    assert info.manifest.task == "demo.task"

    def refused(error, told, **fields):
        tiny.write_manifest(folder, **fields)
        with pytest.raises(error, match=told):
            engine.load_adapter("a", folder)

    refused(AdapterMismatch, "trained on gpt9", base={"id": "gpt9", "sha256": ["2" * 64]})
    refused(AdapterCorrupt, "files", files={"../adapter_model.safetensors": "0" * 64})
    refused(AdapterCorrupt, "belong together", files={"adapter_config.json": "0" * 64})
    refused(AdapterCorrupt, "surprise", surprise=1)
    refused(AdapterCorrupt, "cannot be read", files={"x": "0" * 64}, heads=ONE_HEAD)
    tiny.write_manifest(folder)
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(AdapterCorrupt, match="not the file"):
        engine.load_adapter("a", folder)
    assert json.dumps(info.manifest.model_dump(mode="json"))
    assert type(info.manifest).parse(info.manifest.to_json(), name="a") == info.manifest


ONE_HEAD = {"label": {"kind": "classify", "labels": ["a", "b"]}}


def test_files_beside_the_manifest_are_refused(tiny, make_engine, tmp_path):
    folder = tiny.write_manifest(tiny.write_lora(tmp_path))
    save_file({"label.weight": torch.zeros(2, 48)}, folder / "head.safetensors")
    with pytest.raises(AdapterCorrupt, match=r"does not list head.safetensors"):
        make_engine().load_adapter("a", folder)
