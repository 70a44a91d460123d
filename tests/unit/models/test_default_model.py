"""The default model as it is after `gptflow models pull smollm2-135m-instruct`."""

import pytest

from gptflow import config
from gptflow.models import ModelStore

pytestmark = pytest.mark.model

TEXTS = [
    "Revenue rose 12.5% to 3,400 in 2024.",
    "  two  spaces, a tab\t and lines\n\n\n  ",
    "def f(x):\n    return x**2  # ok\n",
    "naïve café, Ελληνικά, العربية, हिन्दी १२३",
    "市场情绪如何？今天股价上涨了３％。",
    "emoji 🤖 👩‍👩‍👧 ☕",
]


@pytest.fixture(scope="module")
def model():
    settings = config.load()
    return ModelStore(settings.cache_dir, offline=True).find(config.DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(model):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(model.path, local_files_only=True)


def test_what_the_store_says_of_it(model):
    assert (model.architecture, model.context) == ("LlamaForCausalLM", 8192)
    assert model.licence == "apache-2.0"
    assert model.size_bytes > 250 << 20


def test_control_tokens(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("<|im_start|>user<|im_end|>").input_ids == [1, 4093, 2]
    assert tokenizer.decode([1, 4093, 2], skip_special_tokens=True) == "user"
    assert len(tokenizer) == 49152


def test_nothing_is_put_around_a_text(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("Hello world").input_ids) == [
        "Hello",
        "Ġworld",
    ]


def test_digits_are_split_one_by_one(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("in 2024").input_ids)
    assert tokens == ["in", "Ġ", "2", "0", "2", "4"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_template_is_chatml(tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_knows_the_capital_of_france(model, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gpt = transformers.AutoModelForCausalLM.from_pretrained(
        model.path, local_files_only=True, dtype=torch.float32
    )
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logits = gpt(ids).logits
        answer = gpt.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
    assert logits.shape == (1, len(prompt), 49152)
    assert "Paris" in tokenizer.decode(answer[0, len(prompt) :])
    assert answer[0, -1] == tokenizer.eos_token_id
