"""Layers with a sliding window see what they see in plain transformers, far beyond the window."""

from __future__ import annotations

import threading

import pytest
import torch

from gptflow.engine.attention import NAME
from gptflow.engine.runner import Runner
from gptflow.engine.scoring import Scoring
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.engine.views import Views
from gptflow.heads import Choose, Embed, Generate
from gptflow.prompt import Prompt
from gptflow.request import Request

WINDOW = 16
LABELS = (" good", " very bad news", " g", " the company reported lower profit than 7,190,000.5")

ALSO_COMPILED = True


@pytest.fixture(params=["gemma3-window", "mistral-window", "qwen2-window", "qwen3-window"])
def name(request):
    return request.param


def ask(ids, new, **more):
    return Request(prompt=ids, head=Generate(max_tokens=new), ignore_eos=True, **more)


def tokens(future):
    return future.result(60).continuations[0].tokens


@pytest.mark.parametrize("length", [1, WINDOW, 150])
def test_alone(tiny, make_engine, name, length):
    ids = tiny.prompt_ids(length)
    engine = make_engine(name)
    assert tokens(engine.submit(ask(ids, 24))) == tiny.greedy(name, ids, 24)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_chunked_prefill(tiny, make_engine, name, rows):
    ids = tiny.prompt_ids(90)
    engine = make_engine(name, prefill_tokens=rows)
    assert tokens(engine.submit(ask(ids, 12))) == tiny.greedy(name, ids, 12)


def test_mixed_batch_of_all_lengths(tiny, make_engine, name):
    engine = make_engine(name, slots=6, step_tokens=24, prefill_tokens=24)
    decoding = threading.Event()
    first = ask(tiny.prompt_ids(120), 60, on_delta=lambda _: decoding.set())
    futures = {(120, 60): engine.submit(first)}
    assert decoding.wait(30)
    choosing = Request(prompt=tiny.prompt_ids(70), head=Choose(labels=LABELS))
    others = [
        engine.submit(choosing),
        engine.submit(Request(prompt=tiny.prompt_ids(50), head=Embed())),
    ]
    for length, new in ((3, 30), (70, 10), (15, 23), (200, 5), (16, 20), (12, 1)):
        futures[length, new] = engine.submit(ask(tiny.prompt_ids(length), new))
    for (length, new), future in futures.items():
        assert tokens(future) == tiny.greedy(name, tiny.prompt_ids(length), new), length
    assert [future.exception(30) for future in others] == [None] * 2


def test_prefix_hit(tiny, make_engine, name):
    engine = make_engine(name)
    prompt = Prompt(f"{'The quick brown fox jumps over the lazy dog. ' * 3}{{{{ text }}}}\nIt:")
    for number, text in enumerate(("the dog sleeps", "the dog sleeps", "shares fell")):
        rendered = prompt.render({"text": text})
        ids = tiny.vocabulary.encode(rendered)
        answer = engine.submit(
            Request(prompt=rendered, head=Generate(max_tokens=12), ignore_eos=True)
        ).result(60)
        assert answer.continuations[0].tokens == tiny.greedy(name, ids, 12)
        assert (answer.usage.cached > 2 * WINDOW) == (number > 0)


@pytest.mark.parametrize("rows", [5, 1024])
@pytest.mark.parametrize("length", [3, 130])
def test_labels_equal_a_plain_forward(tiny, make_engine, name, rows, length):
    engine = make_engine(name, prefill_tokens=rows)
    ids = tiny.prompt_ids(length)
    ends = [tuple(tiny.vocabulary.encode_text(label)) for label in LABELS]
    assert max(map(len, ends)) > WINDOW  # the last rows of a branch no longer see the prompt
    expected = [tiny.logprob(name, ids, end) / len(end) for end in ends]
    for _ in range(2):
        chosen = engine.submit(Request(prompt=ids, head=Choose(labels=LABELS))).result(60)
        assert list(chosen.scores.values()) == pytest.approx(expected, abs=1e-4)


def test_views_are_made_once_a_step_and_shared_while_the_window_reaches_all(tiny, monkeypatch):
    model = tiny.make_model("gemma3-window", "counted")
    model.set_attn_implementation(NAME)
    slots = KVSlots.for_model(model.config, slots=1, length=64, like=model.lm_head.weight)
    runner = Runner(model, slots, tiny.vocabulary.size)
    made = []
    view = Views.view
    monkeypatch.setattr(
        Views, "view", lambda self, chunks, w: made.append(w) or view(self, chunks, w)
    )
    sequence = Sequence(tiny.prompt_ids(40))
    sequence.slot = slots.take()
    with torch.inference_mode():
        for start, stop, windows in ((0, 16, [None]), (16, 40, [16, None])):
            runner.forward([Chunk(sequence, start, stop)])
            assert made == windows
            made.clear()
    assert runner.windows == {16}


@pytest.mark.parametrize(
    ("start", "stop", "first"), [(0, 20, 0), (20, 30, 5), (30, 37, 15), (45, 60, 16)]
)
def test_only_keys_that_some_row_sees_are_read(tiny, start, stop, first):
    views = Views(torch.device("cpu"), torch.float32)
    branches = Scoring(tiny.prompt_ids(30), [(1,) * 8, (2,) * 8, (3,) * 20], room=64)
    branches.slot = 0
    span = views.view([Chunk(branches, start, min(stop, len(branches.tokens)))], WINDOW).spans[0]
    assert span.first == first
    if span.mask is not None:
        assert span.mask.shape[1] == span.length - span.first
