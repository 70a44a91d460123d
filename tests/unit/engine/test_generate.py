"""Sampling, stop strings, streaming and limits."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptflow.engine.detokenizer import Detokenizer
from gptflow.engine.sampler import sample
from gptflow.engine.sequence import Decoding, Sampling
from gptflow.errors import EmptyInput, EngineError, InputTooLong
from gptflow.heads import Generate, Json
from gptflow.prompt import Message, RenderedPrompt, Segment
from gptflow.request import Delta, Request


def test_mean_logprob_is_the_models_own(tiny, make_engine, name):
    ids = tiny.prompt_ids(17)
    head = Generate(max_tokens=9, temperature=1.5, top_k=20, repetition_penalty=1.3)
    request = Request(prompt=ids, head=head, ignore_eos=True)
    drawn = make_engine(name).submit(request).result(30).continuations[0]
    expected = tiny.logprob(name, ids, drawn.tokens) / 9
    assert drawn.mean_logprob == pytest.approx(expected, abs=1e-4)
    assert drawn.finish == "length"


@pytest.mark.parametrize(
    "head",
    [
        Generate(max_tokens=9, logprobs=True),
        Generate(max_tokens=9, n=3, temperature=1.5, top_p=0.9, logprobs=True),
        Generate(max_tokens=9, repetition_penalty=1.5, logprobs=True),
    ],
    ids=["greedy", "sampled", "penalised"],
)
def test_the_log_probability_of_every_token(tiny, make_engine, name, head):
    ids = tiny.prompt_ids(17)
    engine = make_engine(name, prefill_tokens=8)
    drawn = engine.submit(Request(prompt=ids, head=head, ignore_eos=True)).result(30).continuations
    assert len(drawn) == head.n
    for one in drawn:
        with torch.inference_mode():
            rows = tiny.reference(name)(torch.tensor([[*ids, *one.tokens]])).logits[0, 16:-1]
        expected = rows.log_softmax(-1).gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert one.mean_logprob == pytest.approx(sum(one.logprobs) / 9)


def test_log_probabilities_are_of_the_tokens_that_are_told(tiny, make_engine):
    ids = tiny.prompt_ids(17)
    engine = make_engine()
    plain = engine.submit(Request(prompt=ids, head=Generate(max_tokens=12), ignore_eos=True))
    whole = plain.result(30).continuations[0]
    assert whole.logprobs == ()
    stop = (whole.text[3:5],)
    head = Generate(max_tokens=12, stop=stop, logprobs=True)
    cut = engine.submit(Request(prompt=ids, head=head, ignore_eos=True)).result(30)
    [one] = cut.continuations
    assert 0 < len(one.tokens) < 12
    assert len(one.logprobs) == len(one.tokens)


def test_repetition_penalty_equals_transformers(tiny, make_engine, name):
    ids = tiny.prompt_ids(17)
    with torch.inference_mode():
        expected = tiny.reference(name).generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, 17, dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=1.7,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 17:]
    head = Generate(max_tokens=20, repetition_penalty=1.7)
    request = Request(prompt=ids, head=head, ignore_eos=True)
    drawn = make_engine(name).submit(request).result(30).continuations[0]
    assert list(drawn.tokens) == expected.tolist()


def test_samples_share_one_prefill_and_differ(tiny, make_engine):
    engine = make_engine(slots=3)
    ids = tiny.prompt_ids(100)
    head = Generate(max_tokens=10, temperature=1.0, n=8)
    answer = engine.submit(Request(prompt=ids, head=head, seed=5, ignore_eos=True)).result(30)
    assert len({c.tokens for c in answer.continuations}) > 4
    assert answer.usage.tokens_in == 100
    assert answer.usage.tokens_out == 80
    # Each of the other seven copied all of the prompt but its last token.
    assert engine.stats()["cached_tokens"] == 7 * 99
    greedy = Generate(max_tokens=10, n=3)
    same = engine.submit(Request(prompt=ids, head=greedy, ignore_eos=True)).result(30)
    assert {c.tokens for c in same.continuations} == {tiny.greedy("llama", ids, 10)}


def test_seeds_are_reproducible_whoever_is_beside(tiny, make_engine, name):
    engine = make_engine(name)
    head = Generate(max_tokens=20, temperature=0.9, top_p=0.9, top_k=50, min_p=0.01, n=2)

    def drawn(seed):
        return Request(prompt=tiny.prompt_ids(30), head=head, seed=seed, ignore_eos=True)

    alone = engine.submit(drawn(1)).result(30).continuations
    crowd = [engine.submit(drawn(seed)) for seed in (3, 1, 2)]
    tokens = [[c.tokens for c in future.result(30).continuations] for future in crowd]
    assert tokens[1] == [c.tokens for c in alone]
    assert tokens[0] != tokens[1] != tokens[2]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=3),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=2.0, min_p=0.2),
        Sampling(temperature=1.0, top_k=6, top_p=0.7, min_p=0.05),
    ],
)
def test_draws_follow_the_distribution(sampling):
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    logits[:10] += 6
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_k:
        probs[probs < probs.topk(sampling.top_k).values[-1]] = 0
        probs /= probs.sum()
    keep = probs >= sampling.min_p * probs.max()
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    keep[order[before >= sampling.top_p]] = False
    probs = torch.where(keep, probs, 0.0)
    probs /= probs.sum()
    draws = 4000
    row = Decoding([1], sampling=sampling, limit=1, end_ids=frozenset(), seed=2)
    drawn = sample(logits.repeat(draws, 1), [row] * draws)
    counts = torch.bincount(torch.tensor([token for token, _ in drawn]), minlength=1000)
    assert not counts[probs == 0].any()
    likely = probs > 0.02
    error = (counts[likely] / draws - probs[likely]).abs() / (probs[likely] / draws).sqrt()
    assert error.max() < 4.5


@settings(max_examples=200, deadline=None)
@given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 5),
        top_k=st.integers(0, 2**70),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.1, 10),
    ),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 99),
)
@example(Sampling(temperature=1e-40, top_p=0.9), 1.0, 0)
@example(Sampling(temperature=1e-40), 1.0, 0)
@example(Sampling(temperature=0.01, top_p=1e-320), 1.0, 0)
def test_whatever_the_settings_a_token_is_drawn(sampling, scale, seed):
    logits = scale * torch.randn(1, 700, generator=torch.Generator().manual_seed(seed))
    logits[0, 5] = -torch.inf
    row = Decoding([1, 5, 9], sampling=sampling, limit=1, end_ids=frozenset(), seed=seed)
    [(token, logprob)] = sample(logits.clone(), [row])
    assert token != 5
    assert math.isfinite(logprob)
    if sampling.temperature < 0.01 and sampling.repetition_penalty == 1:
        assert token == int(logits.argmax())


def test_a_row_without_a_token_fails_alone():
    rows = [Decoding([1], sampling=Sampling(), limit=1, end_ids=frozenset()) for _ in range(3)]
    logits = torch.zeros(3, 8)
    logits[0, 3] = torch.nan
    logits[2, 4] = 1
    rows[1].constraint = SimpleNamespace(mask=lambda: torch.zeros(8, dtype=torch.bool))
    broken, stuck, good = sample(logits, rows)
    assert "not a number" in str(broken)
    assert "no token" in str(stuck)
    assert good.token == 4


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(tiny, make_engine):
    engine = make_engine()
    ids = tiny.prompt_ids(12)

    def ask(**more):
        head = Generate(max_tokens=60, temperature=1.0, **more)
        pieces: list[Delta] = []
        request = Request(prompt=ids, head=head, seed=4, ignore_eos=True, on_delta=pieces.append)
        answer = engine.submit(request).result(30).continuations[0]
        assert "".join(piece.text for piece in pieces) == answer.text
        return answer

    whole = ask()
    assert whole.finish == "length"
    stop = whole.text[20:24]
    cut = ask(stop=(stop, "never in there"))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop"
    assert len(cut.tokens) < len(whole.tokens)


def test_the_end_token_ends_the_text(tiny, make_engine):
    model = tiny.make_model("llama", "ending")
    engine = make_engine(model=model)
    ids = tiny.prompt_ids(12)
    expected = tiny.greedy("llama", ids, 8)
    head = Generate(max_tokens=20)
    engine._vocabulary.eos_ids, kept = frozenset({expected[5]}), engine._vocabulary.eos_ids
    try:
        answer = engine.submit(Request(prompt=ids, head=head)).result(30).continuations[0]
    finally:
        engine._vocabulary.eos_ids = kept
    assert answer.tokens == expected[: expected.index(expected[5])]
    assert answer.finish == "stop"


def test_max_tokens_is_cut_to_what_the_context_leaves(tiny, make_engine):
    engine = make_engine()
    request = Request(prompt=tiny.prompt_ids(250), head=Generate(), ignore_eos=True)
    assert len(engine.submit(request).result(30).continuations[0].tokens) == 6
    long = engine.submit(Request(prompt=tiny.prompt_ids(300), head=Generate())).exception(30)
    assert isinstance(long, InputTooLong)
    assert "300 tokens" in str(long)
    empty = engine.submit(Request(prompt=(), head=Generate())).exception(30)
    assert isinstance(empty, EmptyInput)


def test_plain_chat_stops_before_the_next_turn(tiny):
    vocabulary = type(tiny.vocabulary)(
        json.dumps({**json.loads(tiny.tokenizer_json()), "added_tokens": []})
    )
    assert vocabulary.chat.name == "plain"
    assert vocabulary.chat.stop == ("\nUser:",)
    prompt = RenderedPrompt((Message("user", (Segment("Hi", False),)),))
    assert vocabulary.decode(vocabulary.encode(prompt)) == "User: Hi\nAssistant:"


@pytest.mark.parametrize("text", ["plain words", "😀 and 世界 and é", "👩‍👩‍👧 x", "END of EN", ""])
def test_pieces_never_split_a_character(tiny, text):
    detokenizer = Detokenizer(tiny.vocabulary.decode, stop=("ENDLESS",))
    ids = tiny.vocabulary.encode_text(text)
    pieces = [detokenizer.push(id_) for id_ in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join([*pieces, detokenizer.flush()]) == text == detokenizer.text


def test_half_a_character_at_the_end_comes_out_at_the_end(tiny):
    detokenizer = Detokenizer(tiny.vocabulary.decode)
    ids = tiny.vocabulary.encode_text("a😀")[:-1]
    pieces = [detokenizer.push(id_) for id_ in ids]
    assert "".join(pieces) == "a"
    assert detokenizer.flush() == tiny.vocabulary.decode(ids)[1:] != ""


def test_what_may_become_a_stop_string_is_held_back(tiny):
    detokenizer = Detokenizer(tiny.vocabulary.decode, stop=("###", "#!"))
    pieces = [detokenizer.push(tiny.vocabulary.encode_text(c)[0]) for c in "a##b#c##"]
    assert pieces == ["a", "", "", "##b", "", "#c", "", ""]
    assert detokenizer.push(tiny.vocabulary.encode_text("!")[0]) == "#"
    assert detokenizer.stopped
    assert detokenizer.text == "a##b#c#"


SCHEMAS = [
    {"enum": ["good", "bad", "so so"]},
    {"const": {"only": "this"}},
    {
        "type": "object",
        "properties": {
            "who": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 6},
                    "age": {"enum": [7, 36, 999]},
                },
                "required": ["name", "age"],
                "additionalProperties": False,
            },
            "mood": {"enum": ["good", "bad"]},
        },
        "required": ["who", "mood"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_fits_its_schema(make_engine, name, temperature):
    engine = make_engine(name)
    prompt = RenderedPrompt.plain("Answer:")
    futures = [
        engine.submit(
            Request(prompt=prompt, head=Json(schema=schema, temperature=temperature), seed=seed)
        )
        for schema in SCHEMAS
        for seed in (1, 2)
    ]
    answers = [future.result(60) for future in futures]
    values = [answer.value for answer in answers]
    assert all(json.loads(answer.text) == answer.value for answer in answers)
    assert {*values[:2]} <= {"good", "bad", "so so"}
    assert values[2] == values[3] == {"only": "this"}
    for value in values[4:6]:
        assert list(value) == ["who", "mood"]
        assert len(value["who"]["name"]) <= 6
        assert value["who"]["age"] in (7, 36, 999)
    assert all(2 <= len(value) <= 3 for value in values[6:])


def test_json_streams_what_it_returns(make_engine):
    pieces: list[Delta] = []
    request = Request(
        prompt=RenderedPrompt.plain("x"), head=Json(schema=SCHEMAS[2]), on_delta=pieces.append
    )
    answer = make_engine().submit(request).result(30)
    assert "".join(piece.text for piece in pieces) == answer.text


def test_json_that_is_not_complete_is_an_error(make_engine):
    schema = {"type": "string", "minLength": 100}
    request = Request(prompt=RenderedPrompt.plain("x"), head=Json(schema=schema, max_tokens=5))
    error = make_engine().submit(request).exception(30)
    assert isinstance(error, EngineError)
    assert "not complete after 5 tokens" in str(error)
    assert error.hint is not None


def test_the_seed_of_a_sample_is_its_own():
    def numbers(seed, number):
        row = Decoding(
            [1], sampling=Sampling(), limit=1, end_ids=frozenset(), seed=seed, sample=number
        )
        return [row.draw() for _ in range(3)]

    assert numbers(1, 0) == numbers(1, 0)
    assert len({tuple(numbers(s, n)) for s in (0, 1, -1) for n in (0, 1)}) == 6
    assert all(0 <= x < 1 and not math.isnan(x) for x in numbers(7, 7))
