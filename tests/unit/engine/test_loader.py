"""Opening a model folder, and refusing what would be served wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers

from gptflow.engine import attention, native
from gptflow.engine.loader import check_config, check_model, load
from gptflow.errors import ConfigError, ModelCorrupt, ModelNotFound, UnsupportedModel
from gptflow.heads import Embed, Generate
from gptflow.request import Request


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.reference("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    return tmp_path


def test_load_and_generate(tiny, folder):
    engine = load(folder, device="cpu", dtype="float32", slots=2, slot_tokens=64, threads=1)
    try:
        assert engine.model.id == folder.name
        assert engine.model.context == 64
        assert len(engine.model.sha256) == 64
        ids = tiny.prompt_ids(12)
        request = Request(prompt=ids, head=Generate(max_tokens=8), ignore_eos=True)
        drawn = engine.submit(request).result(30).continuations[0].tokens
        assert drawn == tiny.greedy("llama", ids, 8)
    finally:
        engine.close()


def test_bfloat16_runs(tiny, folder):
    engine = load(folder, device="cpu", dtype="bfloat16", slots=2, threads=1, model_id="m")
    try:
        assert engine.model.dtype == "bfloat16"
        futures = [
            engine.submit(Request(prompt=tiny.prompt_ids(n), head=Generate(max_tokens=4)))
            for n in (5, 9)
        ]
        assert [future.exception(30) for future in futures] == [None, None]
    finally:
        engine.close()


@pytest.fixture
def compiler():
    try:
        native.load()
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3-window", "gpt2"])
@pytest.mark.parametrize("dtype", ["int16", "int8"])
def test_integer_models(tiny, folder, compiler, name, dtype):
    tiny.reference(name).save_pretrained(folder)
    engine = load(folder, device="cpu", dtype=dtype, slots=2, slot_tokens=64, threads=1)
    try:
        assert engine.model.dtype == dtype
        ids = tiny.prompt_ids(24)
        request = Request(prompt=ids, head=Generate(max_tokens=8), ignore_eos=True)
        drawn = engine.submit(request).result(30).continuations[0].tokens
        assert len(drawn) == 8
        if dtype == "int16":
            assert drawn == tiny.greedy(name, ids, 8)
    finally:
        engine.close()


def test_the_default_is_the_fastest_that_answers_like_float32(folder, compiler):
    engine = load(folder, device="cpu", slots=2, slot_tokens=64, threads=1)
    engine.close()
    assert engine.model.dtype == "int16"


def test_without_kernels_torch_serves(folder, monkeypatch):
    def unavailable():
        raise native.Unavailable("there is no C++ compiler")

    monkeypatch.setattr(native, "load", unavailable)
    engine = load(folder, device="cpu", slots=2, slot_tokens=64, threads=1)
    engine.close()
    assert engine.model.dtype in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        load(folder, device="cpu", dtype="int16")


def test_missing_and_broken_folders(folder, tmp_path):
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError):
            load(folder, device="cuda")
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelCorrupt):
        load(folder)


def test_settings_that_would_be_served_wrong():
    with pytest.raises(UnsupportedModel, match=r"sets attn_logit_softcapping to 50\.0"):
        check_config(transformers.Gemma2Config())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(UnsupportedModel, match="dynamic RoPE"):
        check_config(transformers.LlamaConfig(rope_parameters=rope))
    granite = transformers.GraniteConfig(logits_scaling=8.0)
    with pytest.raises(UnsupportedModel, match="logits_scaling"):
        check_config(granite)
    both_ways = transformers.Gemma3TextConfig(use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        check_config(both_ways)
    chunked = transformers.Llama4TextConfig()
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        check_config(chunked)
    with pytest.raises(UnsupportedModel, match="more than text"):
        check_config(transformers.Gemma3Config())
    with pytest.raises(UnsupportedModel, match="do not generate"):
        check_config(transformers.T5Config())


@pytest.mark.parametrize("kind", ["GPTJ", "GPTNeo", "Bloom", "Falcon", "Mpt"])
def test_models_that_keep_their_own_attention(kind):
    with pytest.raises(UnsupportedModel, match=f"{kind}ForCausalLM") as refused:
        check_config(getattr(transformers, f"{kind}Config")())
    assert "GPT-2, Llama" in str(refused.value)


def test_settings_that_are_served():
    assert check_config(transformers.MistralConfig(sliding_window=512)) == 131072
    assert check_config(transformers.Qwen2Config(use_sliding_window=True)) == 32768
    assert check_config(transformers.Gemma3TextConfig()) == 131072
    assert check_config(transformers.GPT2Config()) == 1024


@pytest.mark.parametrize("window", [16, 128])
def test_a_model_that_does_not_tell_its_attention_of_its_window(tiny, monkeypatch, window):
    model = tiny.make_model("mistral-window", f"silent {window}")
    model.config.sliding_window = window
    check_model(model)
    model.set_attn_implementation("sdpa")

    def attend(*args, sliding_window=None, **kwargs):
        return attention.attend(*args, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, attention.NAME, attend)
    with pytest.raises(UnsupportedModel, match=f"window of {window}"):
        check_model(model)


def test_a_model_that_answers_otherwise_over_slots(tiny, monkeypatch):
    model = tiny.make_model("llama", "crooked")
    from gptflow.engine.runner import Runner

    forward = Runner.forward
    monkeypatch.setattr(Runner, "forward", lambda self, chunks: forward(self, chunks).roll(1, -1))
    with pytest.raises(UnsupportedModel, match="similarity"):
        check_model(model)


def test_importing_the_package_needs_no_torch():
    code = "import sys, gptflow.engine; print('torch' in sys.modules, 'celery' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_using_the_engine_needs_neither_queue_nor_grammars():
    code = (
        "import sys, gptflow.engine; gptflow.engine.TorchEngine; gptflow.engine.load;"
        "print([m for m in ('celery', 'redis', 'kombu', 'llguidance') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3-window", "gpt2"])
def test_adapters_on_integer_models(tiny, folder, compiler, tmp_path_factory, name):
    tiny.reference(name).save_pretrained(folder)
    engine = load(folder, device="cpu", dtype="int16", slots=6, slot_tokens=128, threads=1)
    models = {None: tiny.reference(name)}
    try:
        for seed, rank in ((1, 4), (2, 8)):
            adapter = tiny.write_lora(
                tmp_path_factory.mktemp(f"a{seed}") / "lora", name, seed=seed, rank=rank
            )
            engine.load_adapter(f"a{seed}", adapter)
            models[f"a{seed}"] = tiny.merged(name, adapter)
        ids = tiny.prompt_ids(40)
        vectors = {
            alias: engine.submit(
                Request(prompt=ids, head=Embed(pooling="last", normalize=False, adapter=alias))
            )
            for alias in models
        }
        for alias, model in models.items():
            with torch.inference_mode():
                expected = model.get_decoder()(torch.tensor([ids])).last_hidden_state[0, -1]
            actual = torch.tensor(vectors[alias].result(30).vector)
            assert (actual - expected).norm() < 0.02 * expected.norm(), alias
    finally:
        engine.close()
