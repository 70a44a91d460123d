"""What one request costs while many others wait.

    python -m benchmarks.waiting [--tiny | --model ID|FOLDER] [--rounds 3] [--json]

Submits 64, 256, 1,024 and 4,096 label requests at once, from eight tenants in three classes, and
divides the time until the last answer by how many there were. A queue whose work grew with its
length would show it from left to right. Sizes alternate within a round, and medians over the
rounds are printed: compare figures of one run only.

With --tiny the model is so small that the engine's own work, such as planning a step, is what
is left to measure. Planning is timed by the clock: while requests are still being submitted, the
engine's thread shares Python's interpreter with the one that submits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from concurrent.futures import wait
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from gptflow.config import Settings
from gptflow.engine import TorchEngine, load
from gptflow.heads import Choose
from gptflow.models import ModelStore
from gptflow.request import JobClass, ModelInfo, Request

SIZES = (64, 256, 1024, 4096)
_TENANTS = 8
_SHARED = 128
_OWN = (24, 72)


def tiny_engine() -> TorchEngine:
    """An engine on a random model of two narrow layers and a vocabulary of bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from gptflow.engine.tokenizer import Vocabulary

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    info = ModelInfo(id="tiny", sha256="0" * 64, context=512)
    return TorchEngine(model, Vocabulary(tokenizer.to_str()), info, slot_tokens=512)


def requests(count: int, vocabulary: int, seed: int) -> list[Request]:
    """Label requests: 128 tokens that all share, 24 to 72 of their own, three labels."""
    dice = random.Random(seed)
    low = min(300, vocabulary // 2)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(dice.randrange(low, vocabulary) for _ in range(length))

    shared = ids(_SHARED)
    return [
        Request(
            prompt=shared + ids(dice.randint(*_OWN)),
            head=Choose(labels=("positive", "negative", "neutral")),
            tenant=f"tenant {dice.randrange(_TENANTS)}",
            job_class=dice.choice(get_args(JobClass)),
            deadline=time.time() + dice.uniform(1e5, 1e6),
        )
        for _ in range(count)
    ]


def measure(engine: TorchEngine, batch: list[Request]) -> dict[str, float]:
    """Milliseconds a request: of waiting for the last answer, of planning, of the model."""
    before = engine.stats()["seconds"]
    began = time.perf_counter()
    futures = [engine.submit(request) for request in batch]
    wait(futures)
    seconds = time.perf_counter() - began
    for future in futures:
        future.result()
    after = engine.stats()["seconds"]
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "request": 1000 * seconds / len(batch),
        "plan": 1000 * spent["plan"] / len(batch),
        "forward": 1000 * spent["forward"] / len(batch),
        "other": 1000 * (sum(spent.values()) - spent["plan"] - spent["forward"]) / len(batch),
    }


def run(engine: TorchEngine, sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """The medians over the rounds, one row per size."""
    vocabulary = 250 if engine.model.id == "tiny" else 40_000
    measure(engine, requests(64, vocabulary, seed=0))
    taken: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            batch = requests(size, vocabulary, seed=1000 * number + size)
            taken[size].append(measure(engine, batch))
    rows: list[dict[str, Any]] = []
    for size, measured in taken.items():
        medians = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        first = rows[0]["request_ms"] if rows else medians["request"]
        row = {f"{key}_ms": round(value, 4) for key, value in medians.items()}
        rows.append({"waiting": size, **row, "ratio": round(medians["request"] / first, 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time per request by how many wait.")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="id or folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    if options.tiny:
        engine = tiny_engine()
    else:
        store = ModelStore(Settings().cache_dir, offline=True)
        engine = load(store.ensure(options.model).path)
    try:
        rows = run(engine, tuple(options.sizes), options.rounds)
    finally:
        engine.close()
    if options.json:
        print(json.dumps({"model": engine.model.id, "dtype": engine.model.dtype, "rows": rows}))
        return
    table = Table(title=f"{engine.model.id}, {engine.model.dtype}: milliseconds a request")
    for title in ("waiting", "in all", "planning", "forward", "other", f"to {rows[0]['waiting']}"):
        table.add_column(title, justify="right")
    for row in rows:
        figures = (f"{row[f'{key}_ms']:.3f}" for key in ("request", "plan", "forward", "other"))
        table.add_row(f"{row['waiting']:,}", *figures, f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
