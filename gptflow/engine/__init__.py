"""The GPT runtime: one resident model that answers every kind of request in one forward pass.

`load` opens a model folder and returns a running `TorchEngine`, which implements
`gptflow.request.Engine`. Importing this package does not import torch; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptflow.engine.engine import TorchEngine
    from gptflow.engine.loader import load

__all__ = ["TorchEngine", "load"]


def __getattr__(name: str) -> Any:
    if name == "TorchEngine":
        from gptflow.engine.engine import TorchEngine

        return TorchEngine
    if name == "load":
        from gptflow.engine.loader import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
