"""Stacked matrices of adapters: what they take, and that they never take more."""

from __future__ import annotations

import torch

from gptflow.engine.lora_weights import AdapterRows, LoRAWeights, Projection
from gptflow.engine.places import LooseRows, Places, StagedRows
from gptflow.heads import Generate
from gptflow.request import Request

WIDE = Projection("q", "q", 0, fan_in=6, fan_out=10)
NUMBERS = 4 * (6 + 10)  # bytes of a rank in one place


def adapter(key, rank):
    generator = torch.Generator().manual_seed(rank)
    a = torch.randn(1, rank, 6, generator=generator)
    b = torch.randn(1, rank, 10, generator=generator)
    return LoRAWeights(key, rank, {"q": (a, b)})


def places(limit):
    cpu = torch.device("cpu")
    return Places(most=16, device=cpu, dtype=torch.float32, masked=False, limit=limit)


def rows_of(*adapters):
    return AdapterRows(tuple((i, i + 1, w) for i, w in enumerate(adapters)), rows=len(adapters))


def check(staged, adapters):
    x = torch.randn(len(adapters), 6)
    y = torch.zeros(len(adapters), 10)
    staged.add_(WIDE, x, y)
    for row, out, weights in zip(x, y, adapters, strict=True):
        a, b = weights.groups["q"]
        assert torch.allclose(out, row @ a[0].T @ b[0], atol=1e-5)


def test_places_shrink_to_what_a_step_needs_where_they_would_take_too_much():
    stack = places(limit=8 * 4 * NUMBERS)
    small = [adapter(f"small {i}", 4) for i in range(8)]
    check(stack.stage(rows_of(*small)), small)
    assert stack.nbytes == 8 * 4 * NUMBERS
    large = [adapter("large", 16)]
    generation = stack.generation
    check(stack.stage(rows_of(*large)), large)
    assert stack.nbytes == 1 * 16 * NUMBERS
    assert stack.generation > generation
    both = [*large, small[0]]
    check(stack.stage(rows_of(*both)), both)
    assert stack.nbytes == 2 * 16 * NUMBERS
    staged = stack.stage(rows_of(*small))
    assert isinstance(staged, StagedRows)
    check(staged, small)
    assert stack.nbytes == 8 * 4 * NUMBERS


def test_a_step_that_needs_too_much_does_without():
    stack = places(limit=4 * 16 * NUMBERS)
    mixed = [adapter("large", 16), *(adapter(f"small {i}", 2) for i in range(6))]
    staged = stack.stage(rows_of(*mixed))
    assert isinstance(staged, LooseRows)
    check(staged, mixed)
    assert stack.nbytes == 0


def test_the_last_one_that_goes_takes_the_memory_along():
    stack = places(limit=None)
    pair = [adapter("a", 2), adapter("b", 2)]
    stack.stage(rows_of(*pair))
    stack.forget("a")
    assert stack.nbytes > 0
    stack.forget("b")
    assert stack.nbytes == 0
    check(stack.stage(rows_of(*pair)), pair)


def test_adapters_of_all_ranks_stay_within_the_bound(tiny, make_engine, tmp_path):
    ranks = (1, 2, 3, 4, 2, 24, 1, 3)
    folders = [
        tiny.write_lora(tmp_path / str(i), rank=rank, seed=i) for i, rank in enumerate(ranks)
    ]
    probe = make_engine(model=tiny.make_model("llama", "probe"))
    sizes = [probe.load_adapter(f"a{i}", folder).nbytes for i, folder in enumerate(folders)]
    engine = make_engine(adapter_bytes=2 * sum(sizes))
    for i, folder in enumerate(folders):
        engine.load_adapter(f"a{i}", folder)
    most = []
    step = engine._step

    def stepping():
        step()
        most.append(engine.stats()["adapter_stack_bytes"])

    engine._step = stepping
    ids = tiny.prompt_ids(20)

    def ask(i):
        head = Generate(max_tokens=6, adapter=f"a{i}")
        return engine.submit(Request(prompt=ids, head=head, ignore_eos=True))

    assert ask(5).result(60)
    futures = [ask(i) for i in range(len(folders))]
    for folder, future in zip(folders, futures, strict=True):
        expected = tiny.greedy("llama", ids, 6, tiny.merged("llama", folder))
        assert future.result(60).continuations[0].tokens == expected
    assert 0 < max(most) <= sum(sizes)
