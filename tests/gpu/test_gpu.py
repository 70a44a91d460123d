"""On a real GPU: the checks of `benchmarks/gpu.py`, one by one, and a model folder loaded there."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_checks, gpu_models
from gptflow.engine import cuda, load
from gptflow.engine.slots import KVSlots
from gptflow.heads import Generate
from gptflow.request import Request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("case", gpu_checks.CASES)
def test_flash_attention_over_slots_equals_plain_attention(case):
    figures = gpu_checks.check_attention(gpu_checks.CASES[case])
    assert figures["ok"], figures


def test_recorded_steps_equal_those_that_are_not():
    figures = gpu_checks.check_steps()
    assert figures["ok"], figures


@pytest.mark.parametrize("kind", gpu_models.KINDS)
def test_tokens_in_float32_are_those_of_generate(kind):
    figures = gpu_checks.check_greedy(kind)
    assert figures["ok"], figures


@pytest.mark.parametrize("kind", gpu_models.KINDS)
def test_labels_in_bfloat16_score_as_in_float32(kind):
    figures = gpu_checks.check_labels(kind)
    assert figures["ok"], figures


def test_adapters_in_one_batch_equal_merged_weights():
    figures = gpu_checks.check_adapters()
    assert figures["ok"], figures


@pytest.mark.parametrize(
    ("dtype", "width", "served"),
    [
        (torch.bfloat16, 64, True),
        (torch.float16, 80, True),
        (torch.float32, 64, False),
        (torch.bfloat16, 36, False),
        (torch.bfloat16, 264, False),
    ],
)
def test_flash_attention_is_taken_where_it_serves(dtype, width, served):
    device = torch.device("cuda")
    slots = KVSlots(layers=1, heads=2, width=width, slots=2, length=16, dtype=dtype, device=device)
    assert (cuda.operations(slots) is not None) is served


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_model_folder_is_loaded_and_answers(tmp_path, dtype):
    gpu_models.model(gpu_models.config("llama"), "cpu").save_pretrained(tmp_path)
    words = gpu_models.tokenizer_json(gpu_models.TINY["vocab_size"])
    (tmp_path / "tokenizer.json").write_text(words, encoding="utf-8")
    engine = load(tmp_path, device="cuda", dtype=dtype, slots=4, slot_tokens=128)
    try:
        assert engine.model.device.startswith("cuda")
        assert (engine._runner._packed is not None) is (dtype == "auto")
        request = Request(prompt=(5, 6, 7), head=Generate(max_tokens=9), ignore_eos=True)
        answer = engine.submit(request).result(60)
        assert len(answer.continuations[0].tokens) == 9
    finally:
        engine.close()
