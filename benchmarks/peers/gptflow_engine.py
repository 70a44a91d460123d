"""Ours, as a worker runs it: default settings, every request submitted at once."""

from __future__ import annotations

from typing import Any

import gptflow
from benchmarks.peers.serve import Loaded, Options, serve
from gptflow.engine import load as load_engine
from gptflow.heads import Generate, Generated
from gptflow.request import Request


def load(options: Options) -> Loaded:
    dtype: Any = options.precision
    engine = load_engine(options.model, dtype=dtype, threads=options.threads)

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        futures = [
            engine.submit(
                Request(prompt=tuple(ids), head=Generate(max_tokens=count), ignore_eos=True)
            )
            for ids, count in zip(prompts, new, strict=True)
        ]
        answers = [future.result() for future in futures]
        assert all(isinstance(answer, Generated) for answer in answers)
        return [list(answer.continuations[0].tokens) for answer in answers]  # type: ignore[attr-defined]

    slots = engine.stats()["slots"]
    return Loaded(generate, gptflow.__version__, {"dtype": engine.model.dtype, "slots": slots})


if __name__ == "__main__":
    serve(load)
