"""llama.cpp through llama-cpp-python: one sequence at a time, the common beginning reused."""

from __future__ import annotations

import itertools

from benchmarks.peers.serve import Loaded, Options, serve


def load(options: Options) -> Loaded:
    import llama_cpp

    model = llama_cpp.Llama(
        str(options.model),
        n_ctx=1024,
        n_batch=512,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        # `generate` draws past end tokens by itself, and keeps what two prompts share.
        return [
            list(itertools.islice(model.generate(ids, top_k=1, temp=0.0), count))
            for ids, count in zip(prompts, new, strict=True)
        ]

    return Loaded(generate, llama_cpp.__version__, {"weights": options.precision})


if __name__ == "__main__":
    serve(load)
