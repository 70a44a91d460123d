"""The GPU's steps on a CPU: a plain emulation of flash attention stands in for the operator, and
recordings are replayed by computing again on the same fixed tensors. So all indexing is tested
here, against what transformers generates by itself; `tests/gpu` tests the operator and the graphs.
"""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch

from gptflow.engine import cuda
from gptflow.engine.cuda.graphs import DecodeGraphs, fitting, sizes
from gptflow.engine.cuda.inputs import inputs
from gptflow.engine.cuda.operations import works
from gptflow.engine.lora import LoRABank
from gptflow.engine.runner import Runner
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.heads import Choose, Embed, Generate
from gptflow.prompt import Prompt
from gptflow.request import Request

LABELS = (" good", " very bad news", " g", " the company reported lower profit than 7,190,000.5")
NAMES = ["gpt2", "llama", "qwen3", "mistral-window", "gemma3-window"]


def varlen(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, *, scale, window_size_left, seqused_k
):
    """Flash attention's meaning, with the checks that it makes and some that it does not."""
    count = len(seqused_k)
    for numbers, size in ((cum_seq_q, count + 1), (cum_seq_k, count + 1), (seqused_k, count)):
        assert numbers.dtype == torch.int32
        assert numbers.shape == (size,)
        assert numbers.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[2]
    assert heads % kv_heads == 0
    assert cum_seq_q[0] == 0
    assert cum_seq_q[-1] == len(query)
    out = torch.full_like(query, torch.nan)
    for i in range(count):
        start, stop = cum_seq_q[i : i + 2].tolist()
        first, used = int(cum_seq_k[i]), int(seqused_k[i])
        assert 0 < stop - start <= min(max_q, used)
        assert used <= max_k
        assert first + used <= len(key)
        k, v = (
            x[first : first + used].repeat_interleave(heads // kv_heads, 1) for x in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], k)
        scores = scores * (1 / math.sqrt(width) if scale is None else scale)
        own = torch.arange(used - (stop - start), used)[:, None]  # bottom right
        index = torch.arange(used)
        hidden = index > own
        if window_size_left is not None:
            hidden |= index < own - window_size_left
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[start:stop] = torch.einsum("hqk,khd->qhd", weights, v)
    return out


class Recorder:
    """In place of CUDA graphs: replays by computing again. Counts both."""

    def __init__(self):
        self.sets = self.recorded = self.replayed = 0

    def __call__(self):
        self.sets += 1

        def record(work):
            self.recorded += 1
            work()

            def replay():
                self.replayed += 1
                work()

            return replay

        return record


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture(params=["recorded", "eager"])
def packed(request, recorder):
    return cuda.Operations(varlen, recorder if request.param == "recorded" else None)


def ask(ids, new, adapter=None, **more):
    head = Generate(max_tokens=new, adapter=adapter)
    return Request(prompt=ids, head=head, ignore_eos=True, **more)


def tokens(future):
    return future.result(60).continuations[0].tokens


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_with_chunks_and_branches(tiny, make_engine, name, packed, recorder):
    engine = make_engine(name, operations=packed, slots=6, step_tokens=24, prefill_tokens=24)
    decoding = threading.Event()
    first = ask(tiny.prompt_ids(120), 60, on_delta=lambda _: decoding.set())
    futures = {(120, 60): engine.submit(first)}
    assert decoding.wait(30)
    choosing = engine.submit(Request(prompt=tiny.prompt_ids(70), head=Choose(labels=LABELS)))
    embedding = engine.submit(Request(prompt=tiny.prompt_ids(50), head=Embed()))
    for length, new in ((3, 30), (70, 10), (15, 23), (200, 5), (16, 20), (1, 12)):
        futures[length, new] = engine.submit(ask(tiny.prompt_ids(length), new))
    for (length, new), future in futures.items():
        assert tokens(future) == tiny.greedy(name, tiny.prompt_ids(length), new), length
    ends = [tuple(tiny.vocabulary.encode_text(label)) for label in LABELS]
    expected = [tiny.logprob(name, tiny.prompt_ids(70), end) / len(end) for end in ends]
    assert list(choosing.result(30).scores.values()) == pytest.approx(expected, abs=1e-4)
    plain = make_engine(name, model=tiny.make_model(name, "plain"))
    alone = plain.submit(Request(prompt=tiny.prompt_ids(50), head=Embed())).result(30)
    assert embedding.result(30).vector == pytest.approx(alone.vector, abs=1e-5)
    assert (recorder.replayed > 30) == (packed.recorder is not None)


def test_prefixes_and_samples_are_copied_between_slots(tiny, make_engine, packed):
    engine = make_engine(operations=packed)
    prompt = Prompt(f"{'The quick brown fox jumps over the lazy dog. ' * 3}{{{{ text }}}}\nIt:")
    for number, text in enumerate(("the dog sleeps", "shares fell")):
        rendered = prompt.render({"text": text})
        ids = tiny.vocabulary.encode(rendered)
        answer = engine.submit(ask(rendered, 12)).result(60)
        assert answer.continuations[0].tokens == tiny.greedy("llama", ids, 12)
        assert (answer.usage.cached > 20) == (number > 0)
    head = Generate(max_tokens=9, n=3)
    answer = engine.submit(Request(prompt=ids, head=head, ignore_eos=True)).result(30)
    assert {c.tokens for c in answer.continuations} == {tiny.greedy("llama", ids, 9)}
    assert engine.stats()["cached_tokens"] > 2 * (len(ids) - 2)


def test_adapters_in_recorded_steps(tiny, make_engine, recorder, tmp_path):
    """Other adapters, and larger ones, come while steps are recorded."""
    model = tiny.make_model("llama", "masked")
    engine = make_engine(
        model=model,
        operations=cuda.Operations(varlen, recorder),
        lora=LoRABank.for_model(model, places=8, masked=True),
    )
    ids = tiny.prompt_ids(20)
    folders = {}
    sets = []
    for i, rank in enumerate((4, 4, 8, 8)):
        folders[f"a{i}"] = tiny.write_lora(tmp_path / str(i), seed=i, rank=rank)
        engine.load_adapter(f"a{i}", folders[f"a{i}"])
        aliases = [*folders, None]
        futures = [engine.submit(ask(ids, 12, alias)) for alias in aliases]
        for alias, future in zip(aliases, futures, strict=True):
            adapted = tiny.merged("llama", folders[alias]) if alias else None
            assert tokens(future) == tiny.greedy("llama", ids, 12, adapted), (i, alias)
        sets.append(recorder.sets)
    assert sets[0] == 2  # one without adapters, one with
    assert sets[-1] > sets[0]  # anew when the matrices had moved
    recorded = recorder.recorded
    assert tokens(engine.submit(ask(ids, 12, "a1"))) == tiny.greedy(
        "llama", ids, 12, tiny.merged("llama", folders["a1"])
    )
    assert recorder.recorded <= recorded + 1  # at most for a size that has not occurred


def test_a_broken_request_leaves_its_neighbours_and_its_slot_alone(tiny, make_engine, packed):
    model = copy.deepcopy(tiny.reference())
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan  # no prompt of prompt_ids has it
    model.lm_head.weight = torch.nn.Parameter(tiny.reference().lm_head.weight.detach().clone())
    engine = make_engine(model=model, operations=packed, slots=2)
    bad = engine.submit(ask((*tiny.prompt_ids(40), 9), 30))
    good = [engine.submit(ask(tiny.prompt_ids(20, seed), 30)) for seed in range(3)]
    assert bad.exception(30) is not None
    for seed, future in enumerate(good):
        assert tokens(future) == tiny.greedy("llama", tiny.prompt_ids(20, seed), 30)


def slots_for(model, count=5, length=32):
    return KVSlots.for_model(
        model.config, slots=count, length=length, like=model.lm_head.weight, token_major=True
    )


def sequence_in(slot, ids, done=0):
    sequence = Sequence(ids)
    sequence.slot, sequence.done = slot, done
    return sequence


def test_inputs_say_where_everything_is(tiny):
    slots = slots_for(tiny.make_model())
    chunks = [
        Chunk(sequence_in(3, (5, 6, 7)), 2, 3),
        Chunk(sequence_in(1, (8, 9, 10, 11)), 1, 4),
    ]
    given = inputs(chunks, slots, pad_to=3)
    assert given.ids.tolist() == [[7, 9, 10, 11, 0]]
    assert given.positions.tolist() == [[2, 1, 2, 3, 0]]
    assert given.places.tolist() == [98, 33, 34, 35, slots.spare]
    assert given.first_rows.tolist() == [0, 1, 4, 5]
    assert given.first_places.tolist()[:-1] == [96, 32, slots.spare]
    assert given.lengths.tolist() == [3, 4, 1]
    assert slots.spare == 5 * 32
    copied = given.to(torch.device("cpu"))
    copied.fill(given)
    assert torch.equal(copied.first_rows, given.first_rows)
    assert copied.block.numel() == 3 * 5 + 6  # 11 numbers of half the size, rounded up


@torch.inference_mode()
def test_what_pads_a_recorded_step_touches_no_slot(tiny, recorder):
    model = tiny.make_model("llama", "padded")
    slots = slots_for(model, count=8)
    runner = Runner(model, slots, 400, operations=cuda.Operations(varlen, recorder))
    runner.prepare()
    assert recorder.recorded == len(sizes(8))
    assert not any(cache.any() for cache in (*slots.keys, *slots.values))
    for cache in (*slots.keys, *slots.values):
        cache.fill_(torch.nan)  # who reads where nobody has written is found out
    sequence = sequence_in(6, tiny.prompt_ids(9))
    others = [sequence_in(slot, tiny.prompt_ids(9)) for slot in (1, 7)]
    runner.forward([Chunk(s, 0, 8) for s in (sequence, *others)])
    hidden = runner.forward([Chunk(s, 8, 9) for s in (sequence, *others)])  # padded to four
    assert recorder.replayed == 1
    expected = tiny.reference()(torch.tensor([sequence.tokens])).logits[0, -1]
    for row in runner.logits(hidden):
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    for cache in (*slots.keys, *slots.values):
        written = ~cache.isnan().all(-1).all(1)  # [slots, length]
        assert written.sum(1).tolist() == [0, 9, 0, 0, 0, 0, 9, 9]


def test_sizes_cover_all_slots_and_no_more_than_the_largest():
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(64) == [1, 2, 4, *range(8, 65, 8)]
    assert sizes(300)[-1] == 256
    assert fitting(sizes(64), 9) == 16
    assert fitting(sizes(300), 257) is None


@torch.inference_mode()
def test_steps_go_on_unrecorded_where_recording_fails(tiny, caplog):
    def recorder():
        def record(work):
            raise RuntimeError("operation not permitted when stream is capturing")

        return record

    model = tiny.make_model("llama", "unrecorded")
    runner = Runner(model, slots_for(model), 400, operations=cuda.Operations(varlen, recorder))
    sequence = sequence_in(2, tiny.prompt_ids(9))
    runner.forward([Chunk(sequence, 0, 8)])
    hidden = runner.forward([Chunk(sequence, 8, 9)])
    expected = tiny.reference()(torch.tensor([sequence.tokens])).logits[0, -1]
    torch.testing.assert_close(runner.logits(hidden)[0], expected, atol=1e-4, rtol=1e-4)
    assert caplog.text.count("recording one failed") == 1


def test_more_sequences_than_any_recording_holds(tiny, recorder, monkeypatch):
    monkeypatch.setattr("gptflow.engine.cuda.graphs._SIZES", (1, 2))
    slots = slots_for(tiny.make_model())
    graphs = DecodeGraphs(lambda given: given.ids[0, :, None], slots, recorder, None)
    chunks = [Chunk(sequence_in(slot, (slot, slot + 10)), 1, 2) for slot in (4, 0, 2)]
    assert graphs.run(chunks) is None
    assert graphs.run(chunks[:2]).tolist() == [[14], [10]]


def test_only_a_gpu_in_half_precision_has_operations_of_its_own(tiny):
    assert cuda.operations(slots_for(tiny.make_model())) is None


def test_an_operator_that_reads_elsewhere_is_found_out(tiny):
    like = slots_for(tiny.make_model()).keys[0]
    assert works(varlen, like)
    assert not works(lambda query, key, *_, **__: key[:2], like)

    def refuses(*_, **__):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    assert not works(refuses, like)
