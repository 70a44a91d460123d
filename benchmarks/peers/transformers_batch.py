"""transformers' own continuous batching, with the manager of `generate_batch` kept running.

`generate_batch` itself gives all requests the same number of tokens; its manager takes one for
each. Pages are far smaller than the default of 256 tokens, of which only full ones are shared.
"""

from __future__ import annotations

import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.serve import Loaded, Options, serve
from benchmarks.peers.transformers_model import load_model

PAGE = 32
TOKENS = 24_576
"""In the cache: 64 sequences of 256 tokens and half as many again."""


def load(options: Options) -> Loaded:
    model = load_model(options)
    settings = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=TOKENS // PAGE, max_batch_tokens=512
    )
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=settings,
    )
    manager.start()

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        # The order in which `generate_batch` submits, for the sake of its prefix cache.
        order = sorted(range(len(prompts)), key=lambda i: prompts[i], reverse=True)
        names = {
            manager.add_request(prompts[i], max_new_tokens=new[i], eos_token_id=-1): i
            for i in order
        }
        outputs: list[list[int]] = [[]] * len(prompts)
        left = len(prompts)
        while left:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                outputs[names[result.request_id]] = list(result.generated_tokens)
                left -= 1
            elif result is None and not manager.is_running():
                raise SystemExit("the generation thread has ended")
        return outputs

    return Loaded(generate, transformers.__version__, {"dtype": options.precision, "page": PAGE})


if __name__ == "__main__":
    serve(load)
