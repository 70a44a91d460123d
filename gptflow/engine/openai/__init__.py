"""An engine without a model of its own: any server that speaks OpenAI's HTTP API.

For models that need several GPUs, under vLLM, SGLang or llama.cpp's server. `connect` asks the
server what it can do and returns a running `OpenAIEngine`, which implements
`gptflow.request.Engine`. What the server cannot do is refused, saying what it lacks; nothing
is approximated. No part of it imports torch.
"""

from __future__ import annotations

from gptflow.engine.openai.engine import OpenAIEngine, connect

__all__ = ["OpenAIEngine", "connect"]
