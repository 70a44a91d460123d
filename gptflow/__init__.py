"""GPTFlow: NLP applications on message queues, served by one resident GPT.

import gptflow

flow = gptflow.Client()
job = flow.submit("sentiment.classify", {"text": "Shares plunge 30% after fraud probe"})
print(job.result(timeout=30))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptflow.client import Client as Client
    from gptflow.errors import GPTFlowError as GPTFlowError
    from gptflow.heads import Choices as Choices
    from gptflow.heads import Choose as Choose
    from gptflow.heads import Chosen as Chosen
    from gptflow.heads import Classify as Classify
    from gptflow.heads import Embed as Embed
    from gptflow.heads import Embedded as Embedded
    from gptflow.heads import Generate as Generate
    from gptflow.heads import Generated as Generated
    from gptflow.heads import Json as Json
    from gptflow.heads import MultiHead as MultiHead
    from gptflow.heads import Parsed as Parsed
    from gptflow.heads import Score as Score
    from gptflow.heads import Scored as Scored
    from gptflow.heads import Tag as Tag
    from gptflow.heads import Tagged as Tagged
    from gptflow.hookspecs import hookimpl as hookimpl
    from gptflow.job import Batch as Batch
    from gptflow.job import Job as Job
    from gptflow.prompt import Prompt as Prompt
    from gptflow.result import Result as Result
    from gptflow.task import Context as Context
    from gptflow.task import Input as Input
    from gptflow.task import Output as Output
    from gptflow.task import Task as Task
    from gptflow.task import Text as Text

__version__ = "0.1.0"

# Public names by module, imported at first use: `import gptflow` itself imports nothing.
_PUBLIC = {
    "client": ("Client",),
    "errors": ("GPTFlowError",),
    "heads": (
        "Choices",
        "Choose",
        "Chosen",
        "Classify",
        "Embed",
        "Embedded",
        "Generate",
        "Generated",
        "Json",
        "MultiHead",
        "Parsed",
        "Score",
        "Scored",
        "Tag",
        "Tagged",
    ),
    "hookspecs": ("hookimpl",),
    "job": ("Batch", "Job"),
    "prompt": ("Prompt",),
    "result": ("Result",),
    "task": ("Context", "Input", "Output", "Task", "Text"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gptflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gptflow.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
