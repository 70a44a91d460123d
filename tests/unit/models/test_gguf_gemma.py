"""A GGUF file of a tiny Gemma 3 becomes the model that transformers had before."""

import json

import pytest

from gptflow.errors import UnsupportedModel
from gptflow.models import gguf_file

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
DEFINED = ["\n", "\n\n", "  ", "   ", "<b>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LEARNT = [
    *("\u2581t", "he", "\u2581the", "\u2581\u2581the", "\u4e0a\u6d77", "<e", "s>", "os>"),
    *"abcdefghijklmnopqrstuvwxyz<>_/\u2581\u4e0a\u6d77",
]  # fmt: skip
TOKENS = [*CONTROL, *DEFINED, *BYTES, *LEARNT]
TYPES = [3] * len(CONTROL) + [4] * len(DEFINED) + [6] * 256 + [1] * len(LEARNT)
# transformers' names, less what is before and after them
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@pytest.fixture(scope="module")
def reference():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3TextConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=7,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32,
        max_position_embeddings=128, sliding_window=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.Gemma3ForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.normal_(std=0.3)
                parameter.copy_(parameter.bfloat16())
    return model


def write_gguf(path, model, **extra):
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_license("gemma")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(number) for number in range(len(TOKENS))])
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        short = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            ours = f"blk.{layer}.{NAMES[part]}"
        else:
            ours = short[name]
        # Only what llama.cpp's converter does: its norms multiply by the weight alone.
        writer.add_tensor(f"{ours}.weight", values + 1 if "norm" in ours else values)
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    path = write_gguf(folder / "tiny.gguf", reference)
    assert gguf_file.convert(path, folder, lambda *_: None) == "gemma"
    return folder


def test_the_configuration_says_what_the_family_has_in_common(folder, reference):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    for name in ("rope_parameters", "sliding_window", "head_dim", "query_pre_attn_scalar"):
        assert getattr(config, name) == getattr(reference.config, name)


def test_the_converted_model_gives_the_same_logits(folder, reference):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(40)[None] * 7 % len(TOKENS)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the", ["t", "he"]),
        (" the", ["\u2581the"]),
        ("   the", ["\u2581\u2581\u2581", "t", "he"]),
        ("\u4e0a\u6d77\u4e0a", ["\u4e0a\u6d77", "\u4e0a"]),
        ("\n\n\na", ["\n\n", "\n", "a"]),
        ("\u00e9", ["<0xC3>", "<0xA9>"]),
        ("<b>", ["<b>"]),
    ],
)
def test_texts_are_split_as_sentencepiece_does(tokenizer, text, tokens):
    assert tokenizer.encode(text).tokens == ["<bos>", *tokens]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_no_merge_spells_a_control_token(tokenizer):
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode("<eos><start_of_turn>", add_special_tokens=False).ids
    assert ids[:2] == [TOKENS.index("<e"), TOKENS.index("os>")]
    assert min(ids) >= len(CONTROL)


def test_the_engine_reads_the_tokenizer(folder):
    pytest.importorskip("torch")
    from gptflow.engine.chat import PLAIN
    from gptflow.engine.tokenizer import Vocabulary
    from gptflow.prompt import Message, RenderedPrompt, Segment

    vocabulary = Vocabulary.from_folder(folder)
    assert vocabulary.chat is PLAIN  # it was trained on no turns
    assert vocabulary.eos_ids == {1}
    assert vocabulary.size == len(TOKENS)
    said = RenderedPrompt((Message("user", (Segment("<eos> <b>the</b>", False),)),))
    ids = vocabulary.encode(said)
    assert ids[0] == 2
    assert 1 not in ids
    # An element of HTML is text: it is one token, and is not left out of an answer.
    assert TOKENS.index("<b>") in ids
    assert vocabulary.decode(ids).startswith("User: <eos> <b>the</b>\n")


def test_what_is_not_converted_is_refused(reference, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", reference, gemma3__rope__scaling__type="linear")
    with pytest.raises(UnsupportedModel, match="rotary"):
        gguf_file.convert(path, tmp_path, lambda *_: None)


def test_the_generation_configuration_has_the_end_token(folder):
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1
