"""`gemma-3-270m` as it is after `gptflow models pull gemma-3-270m --accept-licence gemma`."""

import pytest

from gptflow import config
from gptflow.errors import ModelNotFound
from gptflow.models import ModelStore

pytestmark = pytest.mark.model

TEXTS = {
    "Revenue rose 12.5% to 3,400 in 2024.": 22,
    "  two  spaces, a tab\t and lines\n\n\n  ": 12,
    "市场情绪如何？今天股价上涨了３％。": 11,
    "naïve café, Ελληνικά, العربية": 10,
    "emoji 🤖 👩‍👩‍👧 ☕": 11,
    "<h1>Prices</h1>": 3,
}
CHINESE = (
    "上海是中国最大的城市之一，也是重要的经济、金融、贸易和航运中心。这座城市位于长江入海口，"
    "常住人口超过两千四百万，每年有许多游客来这里参观博物馆、品尝小吃。"
)


@pytest.fixture(scope="module")
def model():
    try:
        return ModelStore(config.load().cache_dir, offline=True).find("gemma-3-270m")
    except ModelNotFound:
        pytest.skip("whoever agrees to its terms: GPTFLOW_ACCEPT_LICENCES=gemma make test")


@pytest.fixture(scope="module")
def vocabulary(model):
    pytest.importorskip("torch")
    from gptflow.engine.tokenizer import Vocabulary

    return Vocabulary.from_folder(model.path)


def test_what_the_store_says_of_it(model):
    assert (model.architecture, model.context) == ("Gemma3ForCausalLM", 32768)
    assert (model.licence, model.terms) == ("gemma", "https://ai.google.dev/gemma/terms")


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive_the_round_trip(vocabulary, text):
    ids = vocabulary.encode_text(text)
    assert vocabulary.decode(ids) == text
    assert len(ids) == TEXTS[text]


def test_a_chinese_character_takes_less_than_a_token(vocabulary):
    assert len(vocabulary.encode_text(CHINESE)) / len(CHINESE) < 0.75


def test_the_engine_goes_on_as_transformers_does(model, vocabulary):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gptflow.engine import TorchEngine
    from gptflow.heads import Generate
    from gptflow.request import ModelInfo, Request

    gpt = transformers.AutoModelForCausalLM.from_pretrained(
        model.path, local_files_only=True, dtype=torch.float32
    )
    text = "".join(f"{n}. The river runs past town {n}. " for n in range(1, 90))[:2200]
    prompts = [(2, *vocabulary.encode_text(part)) for part in (text, "上海是中国最大的城市，")]
    assert len(prompts[0]) > gpt.config.sliding_window + 30
    expected = []
    for ids in prompts:
        tensor = torch.tensor([ids])
        with torch.inference_mode():
            out = gpt.generate(
                tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=8, do_sample=False
            )
        expected.append(tuple(out[0, len(ids) :].tolist()))
    info = ModelInfo(id="gemma", sha256=model.sha256, context=model.context)
    engine = TorchEngine(gpt, vocabulary, info, slots=2, slot_tokens=1024, prefill_tokens=200)
    try:
        head = Generate(max_tokens=8)
        futures = [
            engine.submit(Request(prompt=ids, head=head, ignore_eos=True)) for ids in prompts
        ]
        drawn = [future.result(120).continuations[0] for future in futures]
    finally:
        engine.close()
    assert [one.tokens for one in drawn] == expected
    assert "\u4e00" <= drawn[1].text[0] <= "\u9fff"
