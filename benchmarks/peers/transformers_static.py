"""transformers in padded batches of 16, sorted by length: the usual hand-made worker."""

from __future__ import annotations

import transformers

from benchmarks.peers.serve import Loaded, Options, serve
from benchmarks.peers.transformers_model import generate_padded, load_model

BATCH = 16


def load(options: Options) -> Loaded:
    model = load_model(options)

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        outputs: list[list[int]] = [[]] * len(prompts)
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            rows = generate_padded(model, [prompts[i] for i in batch], [new[i] for i in batch])
            for i, row in zip(batch, rows, strict=True):
                outputs[i] = row
        return outputs

    return Loaded(generate, transformers.__version__, {"dtype": options.precision, "batch": BATCH})


if __name__ == "__main__":
    serve(load)
