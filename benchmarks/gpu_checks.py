"""What has to be equal on a GPU before anything is worth timing.

Each check returns its figures, `ok` among them. `tests/gpu` runs them as tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  torch's own custom

from benchmarks import gpu_models
from gptflow.engine.cuda import Operations, VarlenAttention
from gptflow.engine.cuda.operations import flash_attention
from gptflow.engine.runner import Runner
from gptflow.engine.sequence import Chunk, Sequence
from gptflow.engine.slots import KVSlots
from gptflow.heads import Choose, Generate
from gptflow.request import Request

Check = dict[str, Any]


class Rows(NamedTuple):
    """Sequences in slots, in the order of the rows: slot, tokens before, new tokens."""

    heads: int
    kv_heads: int
    width: int
    sequences: tuple[tuple[int, int, int], ...]
    window: int | None = None


_DECODE = tuple((slot, 37 * slot % 200, 1) for slot in (5, 0, 7, 2))
_CHUNKS = ((6, 0, 150), (1, 100, 70), (3, 0, 1), (4, 255, 1))

CASES = {
    "decode, one head per key": Rows(4, 4, 64, _DECODE),
    "decode, grouped": Rows(9, 3, 64, _DECODE),
    "decode, one key head": Rows(8, 1, 128, _DECODE),
    "decode, window": Rows(9, 3, 64, _DECODE, window=16),
    "chunks": Rows(9, 3, 64, _CHUNKS),
    "chunks, one head per key": Rows(4, 4, 32, _CHUNKS),
    "chunks, window": Rows(9, 3, 64, _CHUNKS, window=16),
    "mixed": Rows(9, 3, 64, (*_DECODE, *_CHUNKS)),
    "mixed, window longer than some": Rows(8, 2, 128, (*_DECODE, *_CHUNKS), window=64),
    "mixed, width 80": Rows(8, 2, 80, (*_DECODE, *_CHUNKS)),
    "mixed, width 256": Rows(4, 1, 256, (*_DECODE, *_CHUNKS)),
}


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size_left: int | None,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """`VarlenAttention` one sequence after the other, in float32."""
    out = torch.empty_like(query)
    for i, used in enumerate(seqused_k.tolist()):
        start, stop = cum_seq_q[i : i + 2].tolist()
        first = int(cum_seq_k[i])
        own = torch.arange(used - (stop - start), used, device=query.device)[:, None]
        index = torch.arange(used, device=query.device)
        visible = index <= own
        if window_size_left is not None:
            visible &= index >= own - window_size_left
        q, k, v = (
            part.float().transpose(0, 1)[None]
            for part in (query[start:stop], key[first : first + used], value[first : first + used])
        )
        groups = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
        out[start:stop] = seen[0].transpose(0, 1).to(out.dtype)
    return out


def check_attention(
    case: Rows, *, attend: VarlenAttention = flash_attention, device: str = "cuda"
) -> Check:
    """Sequences in any order in a pool whose other places are not numbers, against SDPA."""
    length, slots = 256, 8
    torch.manual_seed(0)
    dtype = torch.bfloat16
    rows = sum(new for _, _, new in case.sequences)
    pool = torch.full((2, slots * length + 1, case.kv_heads, case.width), torch.nan)
    for slot, before, new in case.sequences:
        used = before + new
        pool[:, slot * length : slot * length + used] = torch.randn(
            2, used, case.kv_heads, case.width
        )
    query = torch.randn(rows, case.heads, case.width).to(device, dtype)
    keys, values = pool.to(device, dtype)
    starts = [0]
    for _, _, new in case.sequences:
        starts.append(starts[-1] + new)

    def numbers(of: list[int]) -> torch.Tensor:
        return torch.tensor(of, dtype=torch.int32, device=device)

    arguments: tuple[Any, ...] = (
        query,
        keys,
        values,
        numbers(starts),
        numbers([slot * length for slot, _, _ in case.sequences] + [0]),
        max(new for _, _, new in case.sequences),
        length,
    )
    options: dict[str, Any] = {
        "scale": None,
        "window_size_left": None if case.window is None else case.window - 1,
        "seqused_k": numbers([before + new for _, before, new in case.sequences]),
    }
    actual = attend(*arguments, **options).float()
    expected = plain_attention(*arguments, **options).float()
    error = (actual - expected).abs().max().item()
    return {"ok": error < 0.02, "error": error}  # one in 2**8 is what the type can say


def check_steps(device: str = "cuda", operations: Operations | None = None) -> Check:
    """The same decode steps recorded, operator by operator, and as one sequence in plain torch."""
    settings = gpu_models.config("llama")
    made = gpu_models.model(settings, device, torch.bfloat16, spread=2)
    reference = gpu_models.model(settings, device, spread=2)
    torch.manual_seed(1)
    lengths = [5, 80, 33]
    texts = torch.randint(1, settings.vocab_size, (len(lengths), 120)).tolist()
    hidden: dict[str, list[torch.Tensor]] = {"recorded": [], "eager": []}
    with torch.inference_mode():
        for name in hidden:
            slots = KVSlots.for_model(
                settings, slots=6, length=128, like=made.lm_head.weight, token_major=True
            )
            runner = Runner(made, slots, settings.vocab_size, operations=operations)
            packed = runner._packed
            if packed is None:
                return {"ok": False, "why": "these slots have no packed steps"}
            if name == "eager":
                packed._graphs = None
            sequences = [Sequence(ids) for ids in texts]
            for sequence, slot in zip(sequences, (4, 0, 3), strict=True):
                sequence.slot = slot
            runner.forward([Chunk(s, 0, n) for s, n in zip(sequences, lengths, strict=True)])
            for step in range(30):
                chunks = [
                    Chunk(s, n + step, n + step + 1)
                    for s, n in zip(sequences, lengths, strict=True)
                ]
                hidden[name].append(runner.logits(runner.forward(chunks)))
        expected = reference(torch.tensor(texts, device=device)).logits.float().log_softmax(-1)
    recorded, eager = (torch.stack(rows).log_softmax(-1) for rows in hidden.values())
    steps = torch.arange(30, device=device)
    true = torch.stack([expected[i, n + steps] for i, n in enumerate(lengths)], dim=1)
    likely = true > true.amax(-1, keepdim=True) - 5
    apart = (recorded - eager).abs().max().item()
    error = (recorded - true).abs()[likely].mean().item()
    return {"ok": apart < 0.1 and error < 0.02, "recorded_vs_eager": apart, "vs_float32": error}


def check_greedy(kind: str, device: str = "cuda", **settings: Any) -> Check:
    """Tokens of a mixed batch in float32 against `generate`, one sequence at a time."""
    configuration = gpu_models.config(kind)
    reference = gpu_models.model(configuration, device)
    torch.manual_seed(2)
    wrong = []
    engine = gpu_models.engine(
        gpu_models.model(configuration, device), step_tokens=48, prefill_tokens=48, **settings
    )
    try:
        prompts = [
            tuple(torch.randint(1, 600, (length,)).tolist()) for length in (1, 7, 16, 40, 150, 90)
        ]
        futures = [
            engine.submit(Request(prompt=ids, head=Generate(max_tokens=24), ignore_eos=True))
            for ids in prompts
        ]
        for ids, future in zip(prompts, futures, strict=True):
            answer: Any = future.result(120)
            tokens = answer.continuations[0].tokens
            with torch.inference_mode():
                out = reference.generate(
                    torch.tensor([ids], device=device),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                    max_new_tokens=24,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            if list(tokens) != out[0, len(ids) :].tolist():
                wrong.append(len(ids))
    finally:
        engine.close()
    return {"ok": not wrong, "lengths_that_differ": wrong}


def check_labels(
    kind: str, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, **settings: Any
) -> Check:
    """Log-probabilities of labels of several tokens, whose rows branch off, against float32."""
    configuration = gpu_models.config(kind)
    reference = gpu_models.model(configuration, device, spread=2)
    torch.manual_seed(3)
    ids = tuple(torch.randint(1, 600, (70,)).tolist())
    labels = (" good", " very bad news", " g")
    engine = gpu_models.engine(gpu_models.model(configuration, device, dtype, spread=2), **settings)
    try:
        request = Request(prompt=ids, head=Choose(labels=labels))
        answer: Any = engine.submit(request).result(60)
        scores = answer.scores
    finally:
        engine.close()
    words = gpu_models.vocabulary(configuration.vocab_size)
    errors = []
    for label in labels:
        end = words.encode_text(label)
        with torch.inference_mode():
            rows = reference(torch.tensor([[*ids, *end]], device=device)).logits[0].log_softmax(-1)
        true = sum(rows[len(ids) - 1 + i, token].item() for i, token in enumerate(end)) / len(end)
        errors.append(abs(scores[label] - true))
    return {"ok": all(error < 0.03 for error in errors), "error": max(errors)}


def check_adapters(device: str = "cuda", **settings: Any) -> Check:
    """Rows of two adapters and of none in one batch, in bfloat16, against merged weights."""
    configuration = gpu_models.config("llama")
    torch.manual_seed(4)
    ids = tuple(torch.randint(1, 600, (40,)).tolist())
    errors = {}
    with tempfile.TemporaryDirectory() as name:
        made = gpu_models.model(configuration, device, torch.bfloat16, spread=2)
        folders: dict[str | None, Path | None] = {None: None}
        for i, rank in enumerate((4, 8)):
            folder = Path(name) / str(i)
            folders[f"a{i}"] = gpu_models.write_adapter(folder, made, rank=rank, seed=i)
        engine = gpu_models.engine(made, **settings)
        try:
            for alias, path in folders.items():
                if alias and path:
                    engine.load_adapter(alias, path)
            futures = {
                alias: engine.submit(
                    Request(
                        prompt=ids, head=Generate(max_tokens=20, adapter=alias), ignore_eos=True
                    )
                )
                for alias in folders
            }
            for alias, path in folders.items():
                answer: Any = futures[alias].result(60)
                drawn = answer.continuations[0]
                reference = gpu_models.model(configuration, device, spread=2)
                if path is not None:
                    gpu_models.merge(reference, path)
                text = torch.tensor([[*ids, *drawn.tokens]], device=device)
                with torch.inference_mode():
                    rows = reference(text).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                true = rows.gather(1, text[0, len(ids) :, None]).mean().item()
                errors[alias or "none"] = abs(drawn.mean_logprob - true)
        finally:
            engine.close()
    return {"ok": all(error < 0.03 for error in errors.values()), **errors}
