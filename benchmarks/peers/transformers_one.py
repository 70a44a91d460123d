"""transformers, one request after the other: what a first script does."""

from __future__ import annotations

import transformers

from benchmarks.peers.serve import Loaded, Options, serve
from benchmarks.peers.transformers_model import generate_padded, load_model


def load(options: Options) -> Loaded:
    model = load_model(options)

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        return [
            generate_padded(model, [ids], [count])[0]
            for ids, count in zip(prompts, new, strict=True)
        ]

    return Loaded(generate, transformers.__version__, {"dtype": options.precision})


if __name__ == "__main__":
    serve(load)
