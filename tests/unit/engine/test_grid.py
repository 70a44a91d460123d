"""Weights that came from 4 bits each are found, and computed with as they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from gptflow.engine import native
from gptflow.engine.native.linear import Format, QuantizedLinear, multiply, pack

PRECISION = 1e-3
"""Inputs have 11 bits and a sign."""


@pytest.fixture(scope="module")
def kernels():
    try:
        return native.load()
    except native.Unavailable as reason:
        pytest.skip(str(reason))


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def on_grid(inputs, outputs, *, levels=16, bias=True, of=32):
    """A layer whose weights are so in every 32 of a row, with random steps and offsets."""
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    blocks = -(-inputs // of)
    steps = torch.rand(outputs, blocks, 1) + 0.1
    offsets = steps * (torch.randn(outputs, blocks, 1) - levels / 2)
    numbers = torch.randint(levels, (outputs, blocks, of))
    layer.weight.data = (steps * numbers + offsets).flatten(1)[:, :inputs].contiguous()
    return layer


def found(kernels, layer):
    return Format(pack(kernels, [layer], Format.INT16).structure.format)


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 13, 400])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 5), (64, 32), (100, 70), (576, 33)])
def test_layers(kernels, rows, threads, inputs, outputs):
    torch.manual_seed(rows)
    layer = on_grid(inputs, outputs)
    assert found(kernels, layer) is Format.GRID
    x = torch.randn(rows, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            y = QuantizedLinear(kernels, layer, Format.INT16)(x)
            assert error(y, layer(x)) < PRECISION
    finally:
        torch.set_num_threads(before)


def test_a_row_does_not_depend_on_those_beside_it(kernels):
    layer = on_grid(576, 64)
    x = torch.randn(20, 576)
    quantized = QuantizedLinear(kernels, layer, Format.INT16)
    with torch.inference_mode():
        together = quantized(x)
        assert all(torch.equal(quantized(x[i : i + 1])[0], together[i]) for i in range(20))


@pytest.mark.parametrize("levels", [1, 2, 3, 6, 11, 16])
def test_any_number_of_levels_up_to_sixteen(kernels, levels):
    layer = on_grid(128, 40, levels=levels)
    assert found(kernels, layer) is Format.GRID
    x = torch.randn(3, 128)
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, Format.INT16)(x), layer(x)) < PRECISION


def test_every_pair_of_inputs_has_its_three_bytes(kernels):
    # One weight of 1 at a time reads the inputs back, in units of the largest number, 1785.
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.weight.data = torch.eye(64)
    assert found(kernels, layer) is Format.GRID
    top = 1785
    edges = [-top, -top + 1, -1, 0, 1, 17, 120, 128, top - 1, top]
    pairs = torch.cartesian_prod(torch.tensor(edges), torch.tensor(edges))
    pairs = torch.cat([pairs, torch.randint(-top, top + 1, (2000, 2))])
    x = torch.zeros(len(pairs), 64)
    x[:, [3, 19]] = pairs.float()
    x[:, 63] = top  # in the other half of the block: its scale is 1
    with torch.inference_mode():
        y = QuantizedLinear(kernels, layer, Format.INT16)(x)
    assert torch.allclose(y, x, atol=1e-3)


def test_rounding_to_bfloat16_does_not_hide_a_grid(kernels):
    torch.manual_seed(0)
    layer = on_grid(576, 200)
    rounded = copy.deepcopy(layer).bfloat16().float()
    assert found(kernels, rounded) is Format.GRID
    x = torch.randn(5, 576)
    with torch.inference_mode():
        y = QuantizedLinear(kernels, rounded, Format.INT16)(x)
        assert error(y, rounded(x)) < 3e-3
        # Rounding is evened out: nearer to the grid than what was rounded is.
        assert error(y, layer(x)) < error(rounded(x), layer(x))


def test_rounding_to_float16_does_not_hide_a_grid(kernels):
    layer = on_grid(576, 200).half().float()
    assert found(kernels, layer) is Format.GRID


@pytest.mark.parametrize("change", [0.003, 0.01, 0.1])
def test_weights_that_were_trained_further_are_kept_as_they_are(kernels, change):
    torch.manual_seed(1)
    layer = on_grid(576, 100)
    weight = layer.weight.data
    weight += change * weight.abs().mean() * torch.randn_like(weight)
    layer.weight.data = weight.bfloat16().float()
    assert found(kernels, layer) is Format.INT16


def test_the_smallest_change_that_a_file_can_hold_is_not_lost(kernels):
    torch.manual_seed(2)
    float32 = on_grid(576, 100)
    float32.weight.data *= 1 + 1e-4 * torch.rand_like(float32.weight)
    assert found(kernels, float32) is Format.INT16
    bfloat16 = on_grid(576, 100).bfloat16()
    numbers = bfloat16.weight.data.view(torch.int16)
    numbers += torch.randint(2, numbers.shape, dtype=torch.int16)  # the next number for a half
    assert found(kernels, bfloat16.float()) is Format.INT16


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_hardly_differ_are_not_taken_for_a_grid(kernels, spread, dtype):
    torch.manual_seed(3)
    layer = torch.nn.Linear(64, 16, bias=False)
    layer.weight.data = (1 + spread * torch.randn(16, 64)).to(dtype).float()
    x = torch.randn(5, 64)
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, Format.INT16)(x), layer(x)) < PRECISION


def test_layers_of_one_number(kernels):
    for number in (0.0, 0.3, -1e-39, 1e38):
        layer = torch.nn.Linear(64, 16, bias=False)
        layer.weight.data.fill_(number)
        x = torch.rand(3, 64) / 64
        with torch.inference_mode():
            y = QuantizedLinear(kernels, layer, Format.INT16)(x)
            assert torch.allclose(y, layer(x), rtol=PRECISION, atol=1e-30)


def test_other_weights_are_not_taken_for_a_grid(kernels):
    assert found(kernels, torch.nn.Linear(576, 16)) is Format.INT16
    assert found(kernels, on_grid(576, 16, levels=40)) is Format.INT16
    assert found(kernels, torch.nn.Linear(2, 16)) is Format.INT16  # two always are on one
    spoilt = on_grid(64, 16)
    spoilt.weight.data[5, 40] = math.nan
    assert found(kernels, spoilt) is Format.INT16
    # As soon as a single one is off
    single = on_grid(576, 100)
    single.weight.data[99, 575] += 0.3 * single.weight.data.abs().max()
    assert found(kernels, single) is Format.INT16


def test_int8_is_what_it_was(kernels):
    assert Format(pack(kernels, [on_grid(64, 8)], Format.INT8).structure.format) is Format.INT8


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_stays_in_its_row(kernels, spoilt):
    layer = on_grid(128, 16)
    x = torch.randn(9, 128)
    x[4, 70] = spoilt
    with torch.inference_mode():
        y = QuantizedLinear(kernels, layer, Format.INT16)(x)
    assert not y[4].isfinite().any()
    assert y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_one_large_input_does_not_drown_those_of_other_blocks(kernels):
    layer = on_grid(128, 16, bias=False)
    x = torch.randn(1, 128)
    x[0, 3] = 1e4
    layer.weight.data[:, :64] = 0  # what is said of the second block only
    with torch.inference_mode():
        assert error(QuantizedLinear(kernels, layer, Format.INT16)(x), layer(x)) < PRECISION


def test_gates_and_what_they_open_have_to_be_on_grids_both(kernels):
    gate, up = on_grid(96, 40, bias=False), on_grid(96, 40, bias=False)
    x = torch.randn(7, 96)
    packed = pack(kernels, [gate, up], Format.INT16, gated=True)
    assert packed.structure.format == Format.GRID
    with torch.inference_mode():
        expected = torch.cat([gate(x), up(x)], dim=1)
        assert error(multiply(kernels, packed, x), expected) < PRECISION
        up.weight.data.normal_()
        packed = pack(kernels, [gate, up], Format.INT16, gated=True)
        assert packed.structure.format == Format.INT16
        expected = torch.cat([gate(x), up(x)], dim=1)
        assert error(multiply(kernels, packed, x), expected) < PRECISION
