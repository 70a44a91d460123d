"""A row with an adapter gets what the model with merged weights gives, whoever else is there."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch

from gptflow.engine import native
from gptflow.engine.adapter_rows import MaskedRows, mask_of, plan
from gptflow.engine.lora import LoRABank
from gptflow.engine.lora_weights import (
    AdapterRows,
    LoRAWeights,
    Projection,
    find_projections,
    rows_by_adapter,
)
from gptflow.engine.native.adapt import CompiledRows
from gptflow.engine.native.install import quantize
from gptflow.engine.native.linear import Format
from gptflow.heads import Choose, Embed, Generate, Json, Score
from gptflow.prompt import Prompt
from gptflow.request import Request

LABELS = ("good", "very bad news", "very bad")

ALSO_COMPILED = True


@pytest.fixture(scope="module")
def kernels():
    try:
        return native.load()
    except native.Unavailable:
        return None


def ask(ids, new, adapter=None, **more):
    head = Generate(max_tokens=new, adapter=adapter)
    return Request(prompt=ids, head=head, ignore_eos=True, **more)


def tokens(future):
    return future.result(60).continuations[0].tokens


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def name(request):
    return request.param


def test_alone_and_next_to_others(tiny, make_engine, tmp_path, name):
    engine = make_engine(name, slots=6, step_tokens=24, prefill_tokens=24)
    models = {None: tiny.reference(name)}
    for seed, rank in ((1, 4), (2, 8), (3, 1)):
        folder = tiny.write_lora(tmp_path / str(seed), name, seed=seed, rank=rank)
        engine.load_adapter(f"a{seed}", folder)
        models[f"a{seed}"] = tiny.merged(name, folder)
    ids = tiny.prompt_ids(20)
    outputs = {}
    for alias, model in models.items():
        outputs[alias] = tokens(engine.submit(ask(ids, 20, alias)))
        assert outputs[alias] == tiny.greedy(name, ids, 20, model)
    assert len(set(outputs.values())) == 4  # the adapters matter
    lengths = ((3, 40), (70, 10), (41, 33), (9, 25), (64, 50), (12, 1), (33, 12), (2, 30))
    futures = {}
    for at, (length, new) in enumerate(lengths * 2):
        alias = list(models)[(at + at // 4) % 4]
        futures[at, length, new, alias] = engine.submit(
            ask(tiny.prompt_ids(length), new, alias, tenant=str(at))
        )
    for (_, length, new, alias), future in futures.items():
        expected = tiny.greedy(name, tiny.prompt_ids(length), new, models[alias])
        assert tokens(future) == expected, (length, alias)


def test_hidden_states_and_likelihoods_equal_merged_weights(tiny, make_engine, tmp_path, name):
    engine = make_engine(name)
    models = {None: tiny.reference(name)}
    for seed in (1, 2):
        folder = tiny.write_lora(tmp_path / str(seed), name, seed=seed)
        engine.load_adapter(f"a{seed}", folder)
        models[f"a{seed}"] = tiny.merged(name, folder)
    ids = tiny.prompt_ids(30)
    futures = {
        alias: (
            engine.submit(
                Request(prompt=ids, head=Embed(pooling="last", normalize=False, adapter=alias))
            ),
            engine.submit(Request(prompt=ids, head=Choose(labels=LABELS, adapter=alias))),
        )
        for alias in models
    }
    ends = [tiny.vocabulary.encode_continuation(label, after="x") for label in LABELS]
    for alias, (embedded, chosen) in futures.items():
        model = models[alias]
        with torch.inference_mode():
            hidden = model.get_decoder()(torch.tensor([ids])).last_hidden_state[0, -1]
        vector = torch.tensor(embedded.result(30).vector)
        torch.testing.assert_close(vector, hidden, rtol=1e-4, atol=1e-4)
        expected = [tiny.logprob(name, ids, end, model) / len(end) for end in ends]
        assert list(chosen.result(30).scores.values()) == pytest.approx(expected, abs=1e-4)


def test_a_baseline_is_computed_with_the_same_adapter(tiny, make_engine, tmp_path):
    engine = make_engine()
    prompt = Prompt("Text: {{ text }}\nMood:").render({"text": "the dog sleeps on"})
    blank = prompt.content_free()
    encode = tiny.vocabulary.encode_continuation
    for alias in (None, "a"):
        model = tiny.reference()
        if alias:
            folder = tiny.write_lora(tmp_path)
            engine.load_adapter(alias, folder)
            model = tiny.merged("llama", folder)
        head = Choose(labels=("good", "bad"), adapter=alias)
        chosen = engine.submit(Request(prompt=prompt, head=head, baseline=blank)).result(30)
        for label, score in chosen.scores.items():
            end = encode(label, after="Mood:")
            a, b = (
                tiny.logprob("llama", tiny.vocabulary.encode(p), end, model) / len(end)
                for p in (prompt, blank)
            )
            assert score == pytest.approx(a - b, abs=2e-4)


def test_a_prefix_hit_never_crosses_adapters(tiny, make_engine, tmp_path, name):
    engine = make_engine(name)
    models = {None: tiny.reference(name)}
    for seed in (1, 2):
        folder = tiny.write_lora(tmp_path / str(seed), name, seed=seed)
        engine.load_adapter(f"a{seed}", folder)
        models[f"a{seed}"] = tiny.merged(name, folder)
    rendered = Prompt("The quick brown fox jumps over the dog.\nText: {{ text }}\nAnswer:").render(
        {"text": "shares fell"}
    )
    ids = tiny.vocabulary.encode(rendered)
    for again in range(3):
        for alias, model in models.items():
            answer = engine.submit(ask(rendered, 12, alias)).result(60)
            assert answer.continuations[0].tokens == tiny.greedy(name, ids, 12, model)
            assert (answer.usage.cached > 8) == (again > 0)


def test_samples_and_grammars_run_with_their_adapter(tiny, make_engine, tmp_path):
    engine = make_engine()
    folder = tiny.write_lora(tmp_path)
    engine.load_adapter("a", folder)
    ids = tiny.prompt_ids(20)
    head = Generate(max_tokens=10, n=3, adapter="a")
    drawn = engine.submit(Request(prompt=ids, head=head, ignore_eos=True)).result(30)
    expected = tiny.greedy("llama", ids, 10, tiny.merged("llama", folder))
    assert [c.tokens for c in drawn.continuations] == [expected] * 3
    schema = {"enum": ["good", "bad"]}
    plain, adapted = (
        engine.submit(Request(prompt=ids, head=Json(schema=schema, adapter=alias))).result(30)
        for alias in (None, "a")
    )
    assert plain.adapter is None
    assert adapted.adapter.startswith("a@")
    assert adapted.value in ("good", "bad")
    odds = engine.submit(Request(prompt=ids, head=Score(adapter="a"))).result(30)
    assert odds.values != engine.submit(Request(prompt=ids, head=Score())).result(30).values


def test_an_adapter_changed_mid_decode_serves_new_requests_only(tiny, make_engine, tmp_path):
    engine = make_engine(slots=2)
    old = tiny.write_lora(tmp_path / "old", seed=1)
    new = tiny.write_lora(tmp_path / "new", seed=2)
    first = engine.load_adapter("a", old)
    begun = threading.Event()
    ids = tiny.prompt_ids(20)
    running = engine.submit(ask(ids, 100, "a", on_delta=lambda _: begun.set()))
    assert begun.wait(30)
    second = engine.load_adapter("a", new)
    after = engine.submit(ask(ids, 30, "a"))
    engine.unload_adapter("a")
    assert tokens(running) == tiny.greedy("llama", ids, 100, tiny.merged("llama", old))
    assert running.result().adapter == first.reference
    assert tokens(after) == tiny.greedy("llama", ids, 30, tiny.merged("llama", new))
    assert after.result().adapter == second.reference
    assert first.sha256 != second.sha256
    assert engine.stats()["adapter_bytes"] == 0


def test_integer_layers_add_what_adapters_do(tiny, make_engine, tmp_path, name, kernels):
    if kernels is None:
        pytest.skip("there are no compiled kernels here")
    model = copy.deepcopy(tiny.reference(name))
    bank = LoRABank.for_model(model, places=8, library=kernels, half=True)
    quantize(model, kernels, Format.INT16, bank.targets)
    engine = make_engine(name, model=model, kernels=kernels, lora=bank)
    models = {None: tiny.reference(name)}
    for seed in (1, 2):
        folder = tiny.write_lora(tmp_path / str(seed), name, seed=seed)
        engine.load_adapter(f"a{seed}", folder)
        models[f"a{seed}"] = tiny.merged(name, folder)
    ids = tiny.prompt_ids(30)
    futures = {
        alias: engine.submit(
            Request(prompt=ids, head=Embed(pooling="last", normalize=False, adapter=alias))
        )
        for alias in models
    }
    for alias, future in futures.items():
        with torch.inference_mode():
            hidden = models[alias].get_decoder()(torch.tensor([ids])).last_hidden_state[0, -1]
        vector = torch.tensor(future.result(30).vector)
        assert (vector - hidden).norm() / hidden.norm() < 0.01


def compiled(kernels, placed, a, b, dtype):
    """The kernel's way, called like the others; a second layer's matrices lie before these."""
    projection = Projection("layer", "group", 1, a.shape[2], b.shape[2])
    weights = [
        LoRAWeights(
            str(i), a.shape[1], {"group": (_after_noise(a[i], dtype), _after_noise(b[i], dtype))}
        )
        for i in range(len(a))
    ]
    rows = AdapterRows(tuple((i, j, weights[w]) for i, j, w in placed.segments), placed.rows)
    found = CompiledRows(kernels, rows)
    return SimpleNamespace(add_=lambda x, y, a, b: found.add_(projection, x, y))


def _after_noise(matrix, dtype):
    return torch.stack([torch.full_like(matrix, 1e3), matrix]).to(dtype)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(
    ("rank", "fan_in", "fan_out"), [(3, 10, 7), (8, 64, 33), (5, 48, 96), (1, 17, 16)]
)
def test_every_way_of_adding_gives_the_same(strided, rank, fan_in, fan_out, kernels):
    generator = torch.Generator().manual_seed(5)
    places, rows = 6, 24
    # Numbers that half precision holds exactly.
    a = torch.randn(places, rank, fan_in, generator=generator).half().float()
    b = torch.randn(places, rank, fan_out, generator=generator).half().float()
    x = torch.randn(rows, fan_in, generator=generator)
    for trial in range(40):
        dice = torch.Generator().manual_seed(trial)
        kinds = int(torch.randint(1, places + 2, (), generator=dice))
        owners = torch.randint(-1, kinds - 1, (rows,), generator=dice)
        if trial % 2:  # prompts: rows of one adapter lie together
            owners = owners.sort().values
        found = AdapterRows(
            tuple((i, i + 1, int(o)) for i, o in enumerate(owners) if o >= 0), rows=rows
        )
        if not found.segments:
            continue
        expected = torch.ones(rows, fan_out)
        for i, owner in enumerate(owners.tolist()):
            if owner >= 0:
                expected[i] += (x[i] @ a[owner].T) @ b[owner]
        cpu = torch.device("cpu")
        ways = [plan(found, cpu), MaskedRows(mask_of(found, places, rank, cpu))]
        if kernels is not None:
            ways += [compiled(kernels, found, a, b, dtype) for dtype in (torch.float, torch.half)]
        for way in ways:
            whole = torch.ones(rows, 3 * fan_out)
            y = whole[:, fan_out : 2 * fan_out] if strided else torch.ones(rows, fan_out)
            way.add_(x, y, a, b)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
            assert (whole[:, :fan_out] == 1).all()


def test_a_neighbours_infinity_stays_its_own(kernels):
    a, b = torch.ones(2, 1, 4), torch.ones(2, 1, 3)
    x = torch.ones(2, 4)
    x[0] = float("inf")
    rows = AdapterRows(((0, 1, 0), (1, 2, 1)), rows=2)
    cpu = torch.device("cpu")
    ways = [plan(rows, cpu), MaskedRows(mask_of(rows, 2, 1, cpu))]
    if kernels is not None:
        ways.append(compiled(kernels, rows, a, b, torch.float))
    for way in ways:
        y = torch.zeros(2, 3)
        way.add_(x, y, a, b)
        assert y[1].tolist() == [4.0, 4.0, 4.0]


def test_places_are_reused_and_grow():
    projection = Projection("layer", "layer", 0, 4, 4)
    bank = LoRABank(
        {"layer": projection}, places=4, device=torch.device("cpu"), dtype=torch.float32
    )
    dice = torch.Generator().manual_seed(3)

    def weights(number, rank):
        a, b = torch.randn(2, 1, rank, 4, generator=dice)
        return LoRAWeights(str(number), rank, {"layer": (a, b)})

    all_ = [weights(i, 1 + i % 3) for i in range(12)]
    target = bank.targets["layer"]
    x = torch.randn(8, 4, generator=dice)
    for trial in range(60):
        count = 1 + trial % 4
        chosen = [all_[int(i)] for i in torch.randperm(12, generator=dice)[:count]]
        if trial % 5 == 0:
            bank.forget(chosen[0].key)
        bank.begin(rows_by_adapter([(1, None), *((1, w) for w in chosen)]))
        y = torch.zeros(1 + count, 4)
        target.add_(x[: 1 + count], y)
        assert y[0].tolist() == [0.0] * 4
        for i, w in enumerate(chosen):
            a, b = w.groups["layer"]
            torch.testing.assert_close(y[i + 1], (x[i + 1] @ a[0].T) @ b[0])
    bank.begin(None)
    y = torch.zeros(8, 4)
    target.add_(x, y)
    assert not y.any()
    assert bank.nbytes == 2 * 4 * 3 * 4 * 4  # A and B of four places, rank 3, width 4


def test_the_output_layer_is_no_projection(tiny, name):
    names = find_projections(tiny.reference(name))
    assert not any("lm_head" in module for module in names)
    assert len(names) == (8 if name == "gpt2" else 14)
