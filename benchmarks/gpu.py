"""All that a GPU is needed for, in one go of at most ten minutes: is it right, and how fast.

    PYTHONPATH=. python benchmarks/gpu.py --out gpu.json

Needs torch, transformers and a CUDA device; no network and no weights, the models are random.
Equality comes first (`gpu_checks`), then the measurements. Each part says for itself what went
wrong with it; the last thing printed is one JSON. The exit code is 1 if a check is not ok.

`--dry-run` runs the same on a CPU with tiny models and a plain attention in place of the GPU's:
it shows that the script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import gpu_checks, gpu_models
from gptflow.engine import bench, cuda
from gptflow.engine.engine import TorchEngine
from gptflow.engine.runner import Runner
from gptflow.engine.sampler import sample
from gptflow.engine.sequence import Chunk, Decoding, Sampling
from gptflow.engine.slots import KVSlots
from gptflow.heads import Generate
from gptflow.request import Request

_SECONDS = 540
"""After these no further part is begun."""

Report = dict[str, Any]


class Setting:
    """What to run on.

    Attributes:
        shape: of the model that is timed.
        operations: None are the device's own.
    """

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self.shape = gpu_models.TINY if dry else gpu_models.SMOL
        self.operations = cuda.Operations(gpu_checks.plain_attention, _again) if dry else None
        self.slots = 8 if dry else 256
        self.steps = 3 if dry else 50
        self.batches = (1, 4) if dry else (1, 8, 32, 128, 256)

    def model(self) -> Any:
        """The model to time: it decides nothing, so its weights are left as they are made."""
        settings = gpu_models.config("llama", self.shape)
        return gpu_models.model(settings, self.device, torch.bfloat16, spread=1)

    @contextmanager
    def engine(self, *, graphs: bool, **settings: Any) -> Iterator[TorchEngine]:
        """An engine on it."""
        made = self.model()
        engine = gpu_models.engine(
            made,
            slots=self.slots,
            slot_tokens=512,
            operations=self._operations(made, graphs=graphs),
            step_tokens=1024,
            prefill_tokens=8192,
            **settings,
        )
        try:
            yield engine
        finally:
            engine.close()
            if not self.dry:
                torch.cuda.empty_cache()

    def runner(self, made: Any, *, graphs: bool, length: int = 512) -> tuple[Runner, KVSlots]:
        """The same without its thread."""
        slots = KVSlots.for_model(
            made.config,
            slots=self.slots,
            length=length,
            like=next(made.parameters()),
            token_major=True,
        )
        operations = self._operations(made, graphs=graphs)
        return Runner(made, slots, made.config.vocab_size, operations=operations), slots

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if not self.dry:
            torch.cuda.synchronize()

    def _operations(self, made: Any, *, graphs: bool) -> cuda.Operations | None:
        own = self.operations
        if own is None:
            slots = KVSlots.for_model(
                made.config, slots=1, length=8, like=next(made.parameters()), token_major=True
            )
            own = cuda.operations(slots)
        if own is None:
            raise RuntimeError("flash attention does not serve this model here")
        return own if graphs else cuda.Operations(own.attend, None)


def _again() -> cuda.Record:
    """In place of CUDA graphs: computes again."""

    def record(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    return record


def environment(setting: Setting) -> Report:
    """What this ran on."""
    facts: Report = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dry_run": setting.dry,
    }
    if not setting.dry:
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = properties.name
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["memory_gb"] = round(properties.total_memory / 1e9, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def _sequences(setting: Setting, slots: KVSlots, count: int, tokens: int) -> list[Decoding]:
    found = []
    for _ in range(count):
        ids = torch.randint(1, setting.shape["vocab_size"], (tokens,)).tolist()
        sequence = Decoding(ids, sampling=Sampling(), limit=10_000, end_ids=frozenset())
        sequence.slot = slots.take()
        found.append(sequence)
    return found


def _step(runner: Runner, sequences: list[Decoding], at: int) -> None:
    """One decode step as the engine runs it: forward, logits, tokens read back."""
    hidden = runner.forward([Chunk(s, at, at + 1) for s in sequences])
    logits = runner.logits(hidden, range(len(sequences)))
    for sequence, drawn in zip(sequences, sample(logits, sequences), strict=True):
        if isinstance(drawn, Exception):
            raise drawn
        sequence.tokens.append(drawn.token)


def steps(setting: Setting) -> Report:
    """Milliseconds of a decode step at several numbers of sequences with 256 tokens of past."""
    past = 32 if setting.dry else 256
    report: Report = {}
    made = setting.model()
    for graphs in (True, False):
        with torch.inference_mode():
            runner, slots = setting.runner(made, graphs=graphs)
            began = time.perf_counter()
            runner.prepare()
            setting.wait()
            report[f"prepare_s_{_name(graphs)}"] = time.perf_counter() - began
            for count in setting.batches:
                sequences = _sequences(setting, slots, count, past + 1)
                for at in range(0, count, 16):  # their prompts
                    runner.forward([Chunk(s, 0, past) for s in sequences[at : at + 16]])
                times = []
                for step in range(setting.steps):
                    setting.wait()
                    began = time.perf_counter()
                    _step(runner, sequences, past + step)
                    times.append(1000 * (time.perf_counter() - began))
                median = statistics.median(times[len(times) // 5 :])
                report[f"ms_{count}_{_name(graphs)}"] = round(median, 3)
                report[f"tokens_per_s_{count}_{_name(graphs)}"] = round(1000 * count / median)
                for sequence in sequences:
                    slots.release(sequence.slot or 0, used=0)
    return report


def waits(setting: Setting) -> Report:
    """How often a step waits for the device, by torch's own account: once, to read the tokens."""
    made = setting.model()
    found: Report = {"where": []}
    with torch.inference_mode():
        for graphs in (True, False):
            runner, slots = setting.runner(made, graphs=graphs)
            sequences = _sequences(setting, slots, 4, 33)
            long = Decoding([7] * 400, sampling=Sampling(), limit=9, end_ids=frozenset())
            long.slot = slots.take()
            runner.forward([Chunk(s, 0, 32) for s in sequences])
            _step(runner, sequences, 32)
            with _sync_warnings(setting) as heard:
                _step(runner, sequences, 33)
            found[f"decode_{_name(graphs)}"] = len(heard)
            found["where"] += _places(heard)
            with _sync_warnings(setting) as heard:
                runner.forward([*(Chunk(s, 34, 35) for s in sequences), Chunk(long, 0, 100)])
            found[f"mixed_forward_{_name(graphs)}"] = len(heard)
            found["where"] += _places(heard)
    found["ok"] = setting.dry or all(
        found[f"decode_{name}"] <= 1 and found[f"mixed_forward_{name}"] == 0
        for name in map(_name, (True, False))
    )
    return found


@contextmanager
def _sync_warnings(setting: Setting) -> Iterator[list[warnings.WarningMessage]]:
    """Collects where the host waits for the device."""
    heard: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as all_heard:
        warnings.simplefilter("always")
        if not setting.dry:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield heard
        finally:
            if not setting.dry:
                torch.cuda.set_sync_debug_mode("default")
            # Without the one that says that this is a prototype.
            heard += [w for w in all_heard if "synchronizing CUDA operation" in str(w.message)]


def _places(heard: list[warnings.WarningMessage]) -> list[str]:
    return sorted({f"{warning.filename}:{warning.lineno}" for warning in heard})


def workloads(setting: Setting) -> Report:
    """Our own workloads through the whole engine, with and without graphs."""
    report: Report = {}
    count = 4 if setting.dry else 256
    limit = setting.shape["vocab_size"]
    kinds: tuple[bench.Kind, ...] = ("mixed", "label", "single")
    for graphs in (True, False):
        with setting.engine(graphs=graphs) as engine:
            for kind in kinds:

                def draw(seed: int, kind: bench.Kind = kind) -> list[bench.Item]:
                    size = 1 if kind == "single" else count
                    return bench.workload(kind, size, seed, min(40_000, limit))

                repeat = 1 if setting.dry else 3
                report[f"{kind}_{_name(graphs)}"] = bench.measure(engine, draw, kind, repeat=repeat)
            report[f"step_ms_p50_{_name(graphs)}"] = engine.stats()["step_ms_p50"]
    return report


def adapters(setting: Setting) -> Report:
    """As many requests over one adapter and over 32, and without: tokens a second."""
    count = 4 if setting.dry else 64
    many = 2 if setting.dry else 32
    report: Report = {}
    with tempfile.TemporaryDirectory() as folder, setting.engine(graphs=True) as engine:
        made = setting.model()
        for i in range(many):
            path = gpu_models.write_adapter(Path(folder) / str(i), made, rank=8, seed=i)
            engine.load_adapter(f"a{i}", path)
        for name, used in (("none", 0), ("one", 1), ("many", many)):
            rates = []
            for seed in range(4):
                items = bench.workload(
                    "mixed", count, seed, min(40_000, setting.shape["vocab_size"])
                )
                began = time.perf_counter()
                futures = [
                    engine.submit(
                        Request(
                            prompt=tuple(item["ids"]),
                            head=Generate(
                                max_tokens=item["new"], adapter=f"a{i % used}" if used else None
                            ),
                            ignore_eos=True,
                        )
                    )
                    for i, item in enumerate(items)
                ]
                for future in futures:
                    future.result()
                rates.append(sum(item["new"] for item in items) / (time.perf_counter() - began))
            report[f"tokens_per_s_{name}"] = round(statistics.median(rates[1:]))
    report["many_to_one"] = round(report["tokens_per_s_many"] / report["tokens_per_s_one"], 3)
    return report


def peer(setting: Setting) -> Report:
    """What `generate` of transformers makes of 32 equal prompts in one batch, tokens a second."""
    made = setting.model()
    count, new = (2, 4) if setting.dry else (32, 64)
    ids = torch.randint(1, setting.shape["vocab_size"], (count, 128), device=setting.device)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            setting.wait()
            began = time.perf_counter()
            made.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
            setting.wait()
            times.append(time.perf_counter() - began)
    return {"tokens_per_s_32": round(count * new / min(times))}


def memory(setting: Setting) -> Report:
    """What an engine takes, of which weights and keys and values, in megabytes."""
    if setting.dry:
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with setting.engine(graphs=True) as engine:
        bench.run(engine, bench.workload("mixed", 256), "mixed")
        stats = engine.stats()
        slots = engine._slots
        return {
            "allocated_mb": round((torch.cuda.memory_allocated() - before) / 1e6),
            "peak_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6),
            "reserved_mb": round(torch.cuda.memory_reserved() / 1e6),
            "kv_mb": round(slots.nbytes / 1e6),
            "prefix_mb": round(stats["prefix_bytes"] / 1e6),
        }


def _name(graphs: bool) -> str:
    return "graphs" if graphs else "eager"


def checks(setting: Setting) -> dict[str, Callable[[], Report]]:
    """The equality checks by name, the operator's own first."""
    attend = {"attend": setting.operations.attend} if setting.operations else {}
    given: Report = {"operations": setting.operations} if setting.dry else {}
    device = setting.device
    found: dict[str, Callable[[], Report]] = {
        f"attention: {name}": lambda case=case: gpu_checks.check_attention(  # type: ignore[misc]
            case, device=device, **attend
        )
        for name, case in gpu_checks.CASES.items()
    }
    found["steps recorded and not"] = lambda: gpu_checks.check_steps(device, setting.operations)
    for kind in gpu_models.KINDS:
        found[f"greedy float32: {kind}"] = lambda kind=kind: gpu_checks.check_greedy(kind, device)  # type: ignore[misc]
        found[f"labels bfloat16: {kind}"] = lambda kind=kind: gpu_checks.check_labels(  # type: ignore[misc]
            kind, device, **given
        )
    found["adapters bfloat16"] = lambda: gpu_checks.check_adapters(device, **given)
    return found


def main() -> int:
    """Run everything; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny models")
    parser.add_argument("--out", type=Path, help="write the JSON to this file as well")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if not options.dry_run and not torch.cuda.is_available():
        print("There is no CUDA device; --dry-run tries the script on a CPU.", file=sys.stderr)
        return 2
    setting = Setting(dry=options.dry_run)
    parts: dict[str, Callable[[], Report]] = {
        "environment": lambda: environment(setting),
        **checks(setting),
        "waits for the device": lambda: waits(setting),
        "steps": lambda: steps(setting),
        "workloads": lambda: workloads(setting),
        "adapters": lambda: adapters(setting),
        "memory": lambda: memory(setting),
        "transformers generate": lambda: peer(setting),
    }
    report = run(parts)
    text = json.dumps(report, indent=1, default=str)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if report["failed"] else 0


def run(parts: dict[str, Callable[[], Report]]) -> Report:
    """Every part's figures by name; and the names of those that failed or are not ok."""
    began = time.perf_counter()
    report: Report = {"failed": [], "parts": {}}
    for name, part in parts.items():
        started = time.perf_counter()
        if started - began > _SECONDS:
            figures: Report = {"error": "not begun: the time is up"}
        else:
            try:
                figures = part()
            except Exception as error:  # noqa: BLE001  one part's failure is not the others'
                figures = {
                    "error": f"{type(error).__name__}: {error}"[:2000],
                    "at": traceback.format_exc().splitlines()[-6:],
                }
        figures["seconds"] = round(time.perf_counter() - started, 1)
        report["parts"][name] = figures
        if ("error" in figures and "ok" not in figures) or figures.get("ok") is False:
            report["failed"].append(name)
        print(f"{name}: {json.dumps(figures, default=str)[:300]}", file=sys.stderr, flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
