"""OpenVINO GenAI's continuous batching, with prefix caching and split prompts."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.serve import Loaded, Options, serve


def load(options: Options) -> Loaded:
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB: more than the largest workload fills
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_seqs = 128
    scheduler.max_num_batched_tokens = 512
    pipeline = genai.ContinuousBatchingPipeline(
        str(options.model), scheduler, "CPU", {"INFERENCE_NUM_THREADS": options.threads}
    )

    def request(number: int, ids: list[int], count: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        tensor = openvino.Tensor(np.array([ids], dtype=np.int64))
        return pipeline.add_request(number, tensor, config)

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        handles = [
            request(i, ids, count) for i, (ids, count) in enumerate(zip(prompts, new, strict=True))
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    return Loaded(generate, genai.__version__, {"weights": options.precision, "cache_gb": 2})


if __name__ == "__main__":
    serve(load)
