"""What the three ways of running transformers share."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.serve import Options


def load_model(options: Options) -> Any:
    """A causal language model with transformers' own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    return AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.precision), attn_implementation="sdpa"
    ).eval()


def generate_padded(model: Any, prompts: list[list[int]], new: list[int]) -> list[list[int]]:
    """One `model.generate` over all prompts, padded on the left, to the longest answer."""
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            min_new_tokens=max(new),
            max_new_tokens=max(new),
            do_sample=False,
            pad_token_id=0,
        )
    rows = output[:, width:].tolist()
    return [row[:count] for row, count in zip(rows, new, strict=True)]
