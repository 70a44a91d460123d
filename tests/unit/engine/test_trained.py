"""Trained heads give what a plain forward and a matrix give; without one nothing changes."""

from __future__ import annotations

import asyncio
import itertools
import re
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptflow.adapter_info import floor_files
from gptflow.context import Job
from gptflow.engine.trained import viterbi
from gptflow.errors import AdapterCorrupt, AdapterMismatch, UnsupportedHead
from gptflow.executor import Executor
from gptflow.heads import Classify, Embed, MultiHead, Score, Tag
from gptflow.linear_text import LinearText
from gptflow.prompt import Prompt
from gptflow.request import Request
from gptflow.task import Input, Output, Task
from gptflow.testing import registry_of

LABELS = ("good", "bad", "neutral")
PROMPT = Prompt("The quick brown fox jumps over the lazy dog.\nText: {{ text }}\nAnswer:")
TEXT = "Shares of Ada fell in São Paulo 🌞 by ten percent."


def head(labels=LABELS, **more):
    return {"kind": "classify", "labels": list(labels), **more}


@pytest.fixture
def adapter(tiny, tmp_path):
    """Writes adapters with heads, and keeps the matrices."""

    def write(specs, *, lora=True, seed=0, drop=(), extra=None, **manifest):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        if lora:
            tiny.write_lora(folder, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, spec in specs.items():
            count = len(spec.get("labels", ()))
            rows = {"classify": count, "tag": 1 + 2 * count, "score": 1}[spec["kind"]]
            tensors[f"{name}.weight"] = torch.randn(rows, 48, generator=generator)
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator)
        tensors |= extra or {}
        for key in drop:
            del tensors[key]
        save_file(tensors, folder / "head.safetensors")
        tiny.write_manifest(folder, heads=specs, **manifest)
        model = tiny.merged("llama", folder) if lora else tiny.reference()
        return SimpleNamespace(folder=folder, tensors=tensors, model=model)

    return write


def hidden(model, ids):
    with torch.inference_mode():
        return model.get_decoder()(torch.tensor([ids])).last_hidden_state[0]


def logits(made, name, states):
    return states @ made.tensors[f"{name}.weight"].T + made.tensors[f"{name}.bias"]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_classify_equals_a_plain_forward(tiny, make_engine, adapter, lora, pooling):
    made = adapter(
        {"mood": head(temperature=2.0, thresholds={"bad": 0.9})}, lora=lora, pooling=pooling
    )
    engine = make_engine(prefill_tokens=16)
    engine.load_adapter("mood", made.folder)
    asked = Classify(labels=("neutral", "good", "bad"), adapter="mood")  # in another order
    for text in ("the dog sleeps", "shares fell", "shares fell"):
        prompt = PROMPT.render({"text": text})
        chosen = engine.submit(Request(prompt=prompt, head=asked)).result(30)
        states = hidden(made.model, tiny.vocabulary.encode(prompt))
        pooled = states[-1] if pooling == "last" else states.mean(0)
        expected = (logits(made, "mood", pooled) / 2).softmax(-1)
        assert list(chosen.probs) == ["neutral", "good", "bad"]
        for label, prob in zip(LABELS, expected.tolist(), strict=True):
            assert chosen.probs[label] == pytest.approx(prob, abs=1e-4)
        assert chosen.label == LABELS[int(expected.argmax())]
        assert chosen.threshold == (0.9 if chosen.label == "bad" else 0)
        assert chosen.calibrated is True
        assert chosen.adapter.startswith("mood@")
        assert chosen.usage.tokens_out == 0
    assert (chosen.usage.cached > 8) == (pooling == "last")
    assert engine.stats()["slots_used"] == 0


def test_a_simple_model_adds_to_the_heads_logits(tiny, make_engine, adapter):
    simple = LinearText.fit("naive_bayes", ["so fine", "so sad"], ["good", "bad"])
    made = adapter({"mood": head()})
    for name, content in zip(floor_files("mood", simple.kind), simple.files(), strict=True):
        (made.folder / name).write_bytes(content)
    floor = {"kind": simple.kind, "field": "text", "weight": 0.5}
    tiny.write_manifest(made.folder, heads={"mood": head()}, floors={"mood": floor})
    engine = make_engine()
    engine.load_adapter("mood", made.folder)
    asked = Classify(labels=LABELS, adapter="mood")
    prompt = PROMPT.render({"text": "so sad"})
    states = hidden(made.model, tiny.vocabulary.encode(prompt))
    own = logits(made, "mood", states[-1])
    added = own + 0.5 * torch.tensor(simple.log_probs("so sad", LABELS))
    for text, expected in (("so sad", added), ("", own)):
        request = Request(prompt=prompt, head=asked, floor_text=text)
        scores = engine.submit(request).result(30).scores
        assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-3)


def test_several_heads_share_one_forward(tiny, make_engine, adapter):
    made = adapter({"mood": head(), "topic": head(("sport", "money"))})
    engine = make_engine()
    engine.load_adapter("both", made.folder)
    asked = MultiHead(
        heads={"mood": Classify(labels=LABELS), "topic": Classify(labels=("money", "sport"))},
        adapter="both",
    )
    prompt = PROMPT.render({"text": "the dog"})
    chosen = engine.submit(Request(prompt=prompt, head=asked)).result(30)
    last = hidden(made.model, tiny.vocabulary.encode(prompt))[-1]
    for name, labels in (("mood", LABELS), ("topic", ("sport", "money"))):
        expected = logits(made, name, last).softmax(-1).tolist()
        found = chosen[name].probs
        assert [found[label] for label in labels] == pytest.approx(expected, abs=1e-4)
    assert engine.stats()["tokens_in"] == engine.count_tokens(prompt)


def test_a_trained_score_replaces_the_odds(tiny, make_engine, adapter):
    made = adapter({"relevance": {"kind": "score"}})
    engine = make_engine()
    engine.load_adapter("rank", made.folder)
    prompt = PROMPT.render({"text": "the dog"})
    scored = engine.submit(Request(prompt=prompt, head=Score(adapter="rank"))).result(30)
    last = hidden(made.model, tiny.vocabulary.encode(prompt))[-1]
    expected = logits(made, "relevance", last).tolist()
    assert scored.values == pytest.approx(expected, abs=1e-3)


def test_embeddings_come_from_the_adapted_model(tiny, make_engine, adapter):
    made = adapter({"mood": head()})
    engine = make_engine()
    engine.load_adapter("a", made.folder)
    ids = tiny.prompt_ids(30)
    vector = engine.submit(Request(prompt=ids, head=Embed(normalize=False, adapter="a")))
    expected = hidden(made.model, ids).mean(0)
    torch.testing.assert_close(
        torch.tensor(vector.result(30).vector), expected, rtol=1e-4, atol=1e-4
    )


def expected_spans(tiny, made, name, prompt, labels, copies):
    """Tags of the last copy of the text, the plain way: over every valid sequence of tags."""
    segments = tiny.vocabulary.segments(prompt)
    joined = "".join(segment.text for segment in segments)
    begin = joined.rindex(TEXT)
    assert joined.count(TEXT) == copies
    ids, places = tiny.vocabulary.encode_with_places(segments)
    assert ids == tiny.vocabulary.encode(prompt)
    rows = [i for i, (a, b) in enumerate(places) if a < begin + len(TEXT) and b > begin]
    logprobs = logits(made, name, hidden(made.model, ids)[rows]).log_softmax(-1)
    best = viterbi(logprobs)
    spans = []
    for row, tag_ in zip(rows, best, strict=True):
        start, end = max(places[row][0] - begin, 0), min(places[row][1] - begin, len(TEXT))
        if tag_ % 2 == 1:
            spans.append([labels[tag_ // 2], start, end])
        elif tag_:
            spans[-1][2] = max(spans[-1][2], end)
    whole, free = [], list(re.finditer(r"\w+|[^\w\s]", TEXT))  # a word is of the first span in it
    for label, start, end in spans:
        own = [word for word in free if word.start() < end and word.end() > start]
        free = [word for word in free if word not in own]
        if own:
            start, end = own[0].start(), own[-1].end()
            whole.append((label, start, end, TEXT[start:end]))
    return whole


@pytest.mark.parametrize("echo", [False, True])
def test_tags_equal_a_plain_forward(tiny, make_engine, adapter, echo):
    labels = ("PERSON", "PLACE")
    spec = {"kind": "tag", "labels": list(labels), "echo": echo}
    made = adapter({"names": spec}, seed=3)
    engine = make_engine(prefill_tokens=24)
    engine.load_adapter("ner", made.folder)
    source = "Names in: {{ text }}\n" + ("Again: {{ text }}\n" if echo else "") + "Done."
    prompt = Prompt(source).render({"text": TEXT})
    for _ in range(3):  # the third time a beginning is at hand
        tagged = engine.submit(
            Request(prompt=prompt, head=Tag(labels=labels, adapter="ner"), text=TEXT)
        ).result(30)
        found = [(s.label, s.start, s.end, s.text) for s in tagged.spans]
        assert found == expected_spans(tiny, made, "names", prompt, labels, 1 + echo)
        assert found
        assert all(TEXT[s.start : s.end] == s.text for s in tagged.spans)
        assert all(0 < s.score <= 1 for s in tagged.spans)
        assert tagged.calibrated is True


def test_viterbi_finds_the_best_valid_tags():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        logprobs = torch.randn(5, 5, generator=generator).log_softmax(-1)

        def valid(path):
            return all(
                tag == 0 or tag % 2 or (before in (tag - 1, tag))
                for before, tag in zip((0, *path), path, strict=False)
            )

        paths = [p for p in itertools.product(range(5), repeat=5) if valid(p)]
        best = max(paths, key=lambda p: sum(logprobs[i, t].item() for i, t in enumerate(p)))
        assert viterbi(logprobs) == list(best)


def test_heads_that_do_not_fit_are_refused(tiny, make_engine, adapter):
    engine = make_engine()
    made = adapter({"mood": head()})
    engine.load_adapter("mood", made.folder)
    prompt = PROMPT.render({"text": "the dog"})

    def error(asked, **more):
        return engine.submit(Request(prompt=prompt, head=asked, **more)).exception(30)

    other = error(Classify(labels=("good", "bad"), adapter="mood"))
    assert isinstance(other, AdapterMismatch)
    assert "other labels" in str(other)
    assert "no tag head" in str(error(Tag(labels=("A", "B"), adapter="mood")))
    unnamed = MultiHead(heads={"topic": Classify(labels=LABELS)}, adapter="mood")
    assert "no classify head 'topic'" in str(error(unnamed))
    assert isinstance(error(Classify(labels=LABELS)), UnsupportedHead)
    bare = tiny.write_lora(made.folder.parent / "bare")
    engine.load_adapter("bare", bare)
    assert "no trained head" in str(error(Classify(labels=LABELS, adapter="bare")))


def test_a_text_to_tag_must_be_in_the_prompt(tiny, make_engine, adapter):
    engine = make_engine()
    spec = {"kind": "tag", "labels": ["A", "B"], "echo": True}
    engine.load_adapter("ner", adapter({"names": spec}).folder)
    asked = Tag(labels=("A", "B"), adapter="ner")
    once = PROMPT.render({"text": TEXT})
    error = engine.submit(Request(prompt=once, head=asked, text=TEXT)).exception(30)
    assert isinstance(error, AdapterMismatch)
    assert "1 times" in str(error)
    ids = engine.submit(Request(prompt=(1, 2), head=asked, text=TEXT)).exception(30)
    assert isinstance(ids, UnsupportedHead)


def test_malformed_heads_are_refused(make_engine, adapter):
    engine = make_engine()
    mood = {"mood": head()}
    cases = (
        (adapter(mood, drop=["mood.weight"]), AdapterCorrupt, "no weight"),
        (adapter(mood, extra={"x.weight": torch.ones(1)}), AdapterCorrupt, "no head"),
        (adapter(mood, extra={"mood.bias": torch.ones(2)}), AdapterMismatch, "shape"),
        (adapter(mood, extra={"mood.weight": torch.ones(3, 47)}), AdapterMismatch, "shape"),
        (adapter(mood, extra={"mood.bias": torch.ones(3) / 0}), AdapterCorrupt, "infinity"),
    )
    for made, error, told in cases:
        with pytest.raises(error, match=told):
            engine.load_adapter("a", made.folder)
    for spec in (head(("a", "a")), head(thresholds={"x": 0.5}), head(temperature=0), {"kind": "?"}):
        with pytest.raises((AdapterCorrupt, KeyError), match=r"heads|\?"):
            engine.load_adapter("a", adapter({"mood": spec}).folder)


def test_a_classifier_that_peft_trained_is_a_head(tiny, make_engine, tmp_path):
    folder = tiny.write_lora(tmp_path, modules_to_save=["score"])
    path = folder / "adapter_model.safetensors"
    weight = torch.randn(3, 48)
    save_file(load_file(path) | {"base_model.model.score.weight": weight}, path)
    tiny.write_manifest(folder, heads={"mood": head()})
    engine = make_engine()
    engine.load_adapter("mood", folder)
    ids = tiny.prompt_ids(12)
    chosen = engine.submit(Request(prompt=ids, head=Classify(labels=LABELS, adapter="mood")))
    expected = hidden(tiny.merged("llama", folder), ids)[-1] @ weight.T
    found = list(chosen.result(30).scores.values())
    assert found == pytest.approx(expected.tolist(), abs=1e-3)


class Post(Input):
    text: str


class Mood(Output):
    label: str
    probs: dict[str, float]
    calibrated: bool


class Sentiment(Task[Post, Any, Mood]):
    """Mood of one post."""

    name = "demo.mood"
    prompt: ClassVar = PROMPT
    head = Classify(labels=LABELS, adapter="mood")

    def postprocess(self, input, raw):
        return Mood(label=raw.label, probs=dict(raw.probs), calibrated=raw.calibrated)


class Names(Output):
    spans: list[tuple[str, int, int, str]]
    calibrated: bool


class Ner(Task[Post, Any, Names]):
    """Names in one post."""

    name = "demo.names"
    prompt: ClassVar = Prompt("Names in: {{ text }}\nDone.", truncate="text", keep="end")
    head = Tag(labels=("PERSON", "PLACE"), adapter="ner")

    def postprocess(self, input, raw):
        spans = [(s.label, s.start, s.end, s.text) for s in raw.spans]
        return Names(spans=spans, calibrated=raw.calibrated)


def run(engine, task, text):
    executor = Executor(engine, registry_of(task))
    return asyncio.run(executor.run(Job(id="job", task=task.name, input={"text": text})))


def test_a_task_takes_the_adapter_while_there_is_one(make_engine, adapter):
    engine = make_engine()
    before = run(engine, Sentiment(), "the dog sleeps")
    assert before.output["calibrated"] is False
    assert before.provenance.adapter is None
    info = engine.load_adapter("mood", adapter({"mood": head()}).folder)
    served = run(engine, Sentiment(), "the dog sleeps")
    assert served.output["calibrated"] is True
    assert served.provenance.adapter == f"mood@{info.sha256}"
    assert served.abstained is None
    engine.unload_adapter("mood")
    after = run(engine, Sentiment(), "the dog sleeps")
    assert after.output["probs"] == pytest.approx(before.output["probs"], abs=1e-5)
    assert after.output["calibrated"] is False


def test_a_task_abstains_below_the_threshold(make_engine, adapter):
    engine = make_engine()
    unsure = head(thresholds=dict.fromkeys(LABELS, 1.0), temperature=100)
    engine.load_adapter("mood", adapter({"mood": unsure}).folder)
    result = run(engine, Sentiment(), "the dog sleeps")
    assert "below 1.00" in result.abstained


@pytest.mark.parametrize(("energy", "abstained"), [(-1e6, None), (1e6, "none of the labels")])
def test_a_text_of_too_little_energy_is_about_none_of_the_labels(
    make_engine, adapter, energy, abstained
):
    engine = make_engine()
    engine.load_adapter("mood", adapter({"mood": head(energy=energy)}).folder)
    result = run(engine, Sentiment(), "the dog sleeps")
    assert (result.abstained is None) == (abstained is None)
    assert (abstained or "") in (result.abstained or "")


def test_spans_point_into_the_whole_text_even_if_its_start_was_cut_off(make_engine, adapter):
    engine = make_engine()
    spec = {"kind": "tag", "labels": ["PERSON", "PLACE"]}
    engine.load_adapter("ner", adapter({"names": spec}, seed=3).folder)
    text = " ".join(f"{i} Ada went to Paris" for i in range(60))
    result = run(engine, Ner(), text)
    assert result.provenance.truncated
    spans = result.output["spans"]
    assert spans
    assert all(text[start:end] == piece for _, start, end, piece in spans)
    assert min(start for _, start, _, _ in spans) > 100
