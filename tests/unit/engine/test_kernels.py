"""The compiled kernels compute what torch does, to the precision that they promise."""

from __future__ import annotations

import copy
import ctypes
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom
import transformers
from transformers.pytorch_utils import Conv1D

from gptflow.engine import native
from gptflow.engine.loader import check_model
from gptflow.engine.native import build
from gptflow.engine.native.embedding import HalfEmbedding, is_half
from gptflow.engine.native.install import quantize
from gptflow.engine.native.layer import CompiledLayer
from gptflow.engine.native.library import HEAD_WIDTHS, Cache
from gptflow.engine.native.linear import Format, QuantizedLinear
from gptflow.engine.native.logits import compiled_summary
from gptflow.engine.native.step import Part, Step
from gptflow.engine.summary import summarize
from gptflow.heads import Choose, Generate
from gptflow.request import Request

PRECISION = {Format.INT8: 0.02, Format.INT16: 3e-4}
LABELS = (" good", " very bad news", " g", " the company reported lower profit")


@pytest.fixture(scope="module")
def kernels():
    try:
        return native.load()
    except native.Unavailable as reason:
        pytest.skip(str(reason))


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("numbers", PRECISION)
@pytest.mark.parametrize("rows", [1, 5, 6, 13, 400])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (100, 70), (576, 33)])
def test_linear_layers(kernels, numbers, rows, inputs, outputs):
    torch.manual_seed(rows)
    layer = torch.nn.Linear(inputs, outputs)
    x = torch.randn(rows, inputs)
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, numbers)(x), layer(x)) < PRECISION[numbers]


@pytest.mark.parametrize("numbers", PRECISION)
def test_the_linear_layers_of_gpt2(kernels, numbers):
    layer = Conv1D(40, 90)
    x = torch.randn(2, 3, 90)
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, numbers)(x), layer(x)) < PRECISION[numbers]


@pytest.mark.parametrize("numbers", PRECISION)
def test_one_large_input_does_not_drown_those_of_other_blocks(kernels, numbers):
    layer = torch.nn.Linear(128, 16, bias=False)
    x = torch.randn(1, 128)
    x[0, 3] = 1e4
    layer.weight.data[:, :64] = 0  # what is said of the second block only
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, numbers)(x), layer(x)) < PRECISION[numbers]


@pytest.mark.parametrize("numbers", PRECISION)
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_stays_in_its_row(kernels, numbers, spoilt):
    layer = torch.nn.Linear(128, 16)
    x = torch.randn(9, 128)
    x[4, 70] = spoilt
    with torch.inference_mode():
        y = QuantizedLinear(kernels, layer, numbers)(x)
    assert not y[4].isfinite().any()
    assert y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"),
    [(3, 1, width) for width in sorted(HEAD_WIDTHS)] + [(9, 3, 64), (4, 4, 64), (64, 1, 32)],
)
def test_attention(kernels, dtype, window, heads, kv_heads, width):
    torch.manual_seed(0)
    spans = [(0, 1), (5, 1), (220, 1), (0, 7), (0, 150), (13, 100), (130, 33)]
    keys = torch.randn(len(spans), kv_heads, 256, width).to(dtype)
    values = torch.randn(len(spans), kv_heads, 256, width).to(dtype)
    cache = Cache(
        keys=keys.data_ptr(), values=values.data_ptr(), length=256, kv_heads=kv_heads,
        width=width, half=int(dtype == torch.float16),
    )  # fmt: skip
    parts, row = [], 0
    for slot, (start, rows) in enumerate(spans):
        parts.append(Part(row, rows, slot, start))
        row += rows
    query, key, value = (torch.randn(1, n, row, width) for n in (heads, kv_heads, kv_heads))
    step = Step(kernels, [cache], parts, adapted=False)
    actual = step.attend(0, query, key, value, scaling=None, window=window)[0]
    for part in parts:
        stop, rows = part.start + part.rows, slice(part.row, part.row + part.rows)
        written = keys[part.slot, :, part.start : stop].float()
        assert torch.allclose(written, key[0, :, rows], atol=2e-3, rtol=1e-3)
        index = torch.arange(stop)
        seen = index <= index[part.start :, None]
        if window is not None:
            seen &= index > index[part.start :, None] - window
        expected = F.scaled_dot_product_attention(
            query[:, :, rows],
            keys[part.slot : part.slot + 1, :, :stop].float(),
            values[part.slot : part.slot + 1, :, :stop].float(),
            attn_mask=seen,
            enable_gqa=True,
        )[0].transpose(0, 1)
        assert torch.allclose(actual[rows], expected, atol=1e-5)


def test_a_mask_takes_the_place_of_the_order_of_tokens(kernels):
    keys, values = torch.randn(2, 1, 1, 64, 16)
    cache = Cache(
        keys=keys.data_ptr(), values=values.data_ptr(), length=64, kv_heads=1, width=16, half=0
    )
    query, key, value = torch.randn(3, 1, 1, 5, 16)
    seen = torch.ones(5, 15, dtype=torch.bool).tril(10)
    seen[4, 10:14] = False  # the last row is a branch of its own
    mask = torch.zeros(5, 15).masked_fill(~seen, -math.inf)
    step = Step(kernels, [cache], [Part(0, 5, 0, 10, lambda _: mask)], adapted=False)
    actual = step.attend(0, query, key, value, scaling=0.5, window=None)[0, :, 0]
    expected = F.scaled_dot_product_attention(
        query, keys[:, :, :15], values[:, :, :15], attn_mask=seen, scale=0.5
    )[0, 0]
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("width", [1, 16, 400, 49_157])
def test_reading_logits(kernels, width):
    torch.manual_seed(width)
    logits = (30 * torch.randn(9, width + 5))[:, :width]
    logits[0] = 1.0  # all alike: the first one counts
    logits[1, width // 2 :] = -math.inf
    logits[2] = -math.inf
    logits[3, -1] = math.nan
    logits[4, 0] = math.inf
    actual, expected = compiled_summary(kernels, logits), summarize(logits)
    fine = [row for row in range(9) if expected.normalizers[row].isfinite()]
    assert torch.equal(actual.tokens[fine], expected.tokens[fine])
    assert torch.equal(actual.peaks[fine], expected.peaks[fine])
    assert torch.allclose(actual.normalizers[fine], expected.normalizers[fine], atol=1e-5)
    spoilt = [row for row in range(9) if row not in fine]
    assert not actual.normalizers[spoilt].isfinite().any()


MODELS = ["llama", "qwen2", "qwen3", "mistral-window", "gemma3-window", "gpt2"]


@pytest.fixture
def quantized(tiny, kernels):
    def make(name, numbers):
        model = tiny.make_model(name, f"int{8 * numbers}")
        if any(isinstance(module, torch.nn.Linear) for module in model.modules()):
            quantize(model, kernels, numbers)
        return model

    return make


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_in_int16_answer_like_float32(tiny, kernels, quantized, make_engine, name):
    model = quantized(name, Format.INT16)
    compiled = [module for module in model.modules() if isinstance(module, CompiledLayer)]
    assert bool(compiled) == (name != "gpt2")
    engine = make_engine(name, model=model, kernels=kernels, cache_dtype=torch.float16)
    asked = [(3, 30), (70, 10), (200, 5), (16, 20)]
    futures = [
        engine.submit(
            Request(prompt=tiny.prompt_ids(n), head=Generate(max_tokens=new), ignore_eos=True)
        )
        for n, new in asked
    ]
    ids = tiny.prompt_ids(90)
    chosen = engine.submit(Request(prompt=ids, head=Choose(labels=LABELS)))
    ends = [tuple(tiny.vocabulary.encode_text(label)) for label in LABELS]
    expected = [tiny.logprob(name, ids, end) / len(end) for end in ends]
    assert list(chosen.result(60).scores.values()) == pytest.approx(expected, abs=0.05)
    same = [
        future.result(60).continuations[0].tokens == tiny.greedy(name, tiny.prompt_ids(n), new)
        for future, (n, new) in zip(futures, asked, strict=True)
    ]
    assert sum(same) >= 3, same  # rounding may decide between two tokens that are as likely


@pytest.mark.parametrize("name", ["mistral-window", "gemma3-window"])
@pytest.mark.parametrize("window", [16, 128])
@pytest.mark.parametrize("numbers", [None, Format.INT16])
def test_the_loader_sees_that_windows_reach_the_kernels(tiny, kernels, name, window, numbers):
    config = copy.deepcopy(tiny.reference(name).config)
    config._attn_implementation = "sdpa"
    config.sliding_window = window  # one of them too large to be tried out
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    check_model(model, kernels, numbers)


def test_int8_is_close(tiny, kernels, quantized, make_engine):
    engine = make_engine(
        "llama", model=quantized("llama", Format.INT8), kernels=kernels, cache_dtype=torch.float16
    )
    ids = tiny.prompt_ids(60)
    ends = [tuple(tiny.vocabulary.encode_text(label)) for label in LABELS]
    expected = [tiny.logprob("llama", ids, end) / len(end) for end in ends]
    chosen = engine.submit(Request(prompt=ids, head=Choose(labels=LABELS))).result(60)
    assert list(chosen.scores.values()) == pytest.approx(expected, abs=1.5)


def test_the_library_is_built_once(monkeypatch, tmp_path, kernels):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"  # not the kernels', which take a minute
    source.mkdir()
    (source / "kernels.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(build, "_SOURCE", source)
    first = build.build()
    assert ctypes.CDLL(str(first)).answer() == 42
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)  # compiling again would fail
        assert build.build() == first
    assert list(first.parent.glob("*.so")) == [first]
    (source / "kernels.cpp").write_text('extern "C" int answer() { return 43; }')
    assert ctypes.CDLL(str(build.build())).answer() == 43


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path, kernels):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    with pytest.raises(native.Unavailable, match="failed"):
        build.build()
    assert not list(tmp_path.rglob("*.so"))


def test_without_a_compiler_there_are_no_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(native.Unavailable, match="no C\\+\\+ compiler"):
        build.build()


def test_embeddings_that_are_bfloat16_stay_so(tiny):
    ids = torch.tensor([[1, 5, 5, 300]])
    for name in ("llama", "gemma3-window"):  # Gemma scales what it looks up
        module = tiny.make_model(name, "half").get_input_embeddings()
        assert not is_half(module)
        module.weight.data = module.weight.data.bfloat16().float()
        assert is_half(module)
        assert torch.equal(HalfEmbedding(module)(ids), module(ids))
