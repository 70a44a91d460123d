"""Requests: what an engine is asked, one sequence of tokens at a time. No torch.

`Engine` is the interface that the resident model, a remote server and the scripted engine of
`gptflow.testing` share. A future's result is the raw answer of the request's head
(see `gptflow.heads`); its exception is a `GPTFlowError`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from gptflow.heads import Head, Raw
from gptflow.prompt import RenderedPrompt

if TYPE_CHECKING:
    from gptflow.adapter_info import AdapterInfo

JobClass = Literal["interactive", "standard", "batch"]

_numbers = itertools.count(1)


def _next_id() -> str:
    return f"req_{next(_numbers)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a continuation, as it is decoded. `sample` is the continuation's number."""

    text: str
    sample: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to the engine.

    Attributes:
        prompt: a rendered prompt, or token ids as they are.
        head: `Generate`, `Json`, `Choose`, `Score` or `Embed`; with an adapter that was
            trained for it, `Classify`, `MultiHead` or `Tag` too. Without one these, and
            always a `Score` over many items, are taken apart by `gptflow.executor`.
        text: the piece of the prompt's data that `Tag` is about.
        floor_text: what the simple models read that answer in place of an adapter's heads;
            empty where the heads answer themselves.
        baseline: the content-free prompt whose scores `Choose` and `Score` subtract.
        seed: of the random draws; the same request with the same seed draws the same.
        ignore_eos: keep decoding to `max_tokens`, for benchmarks.
        on_delta: called off the engine's thread with each piece of text as it is decoded.
        plugin: the plugin's name, for fair shares.
        tenant: who pays, for fair shares and for the prefix cache.
        deadline: Unix time after which the answer is of no use.
    """

    prompt: RenderedPrompt | tuple[int, ...]
    head: Head
    baseline: RenderedPrompt | None = None
    text: str = ""
    floor_text: str = ""
    seed: int = 0
    ignore_eos: bool = False
    on_delta: Callable[[Delta], None] | None = None
    plugin: str = ""
    tenant: str = ""
    job_class: JobClass = "standard"
    deadline: float | None = None
    id: str = dataclasses.field(default_factory=_next_id)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The resident model.

    Attributes:
        id: its name in the model store, or its folder.
        sha256: over its weight files.
        context: most tokens in one sequence, prompt and answer together.
    """

    id: str
    sha256: str
    context: int
    dtype: str = ""
    device: str = "cpu"


class HeldAdapter(Protocol):
    """One version of an adapter, which stays to be had for as long as this object does."""

    @property
    def info(self) -> AdapterInfo: ...


@runtime_checkable
class ServesAdapters(Protocol):
    """What an engine does that reads adapters from folders. All methods are thread-safe."""

    def load_adapter(self, alias: str, folder: str | Path) -> AdapterInfo:
        """Let requests name the adapter in a folder; those that have begun keep their version."""
        ...

    def unload_adapter(self, alias: str) -> None:
        """Forget an alias. Requests that use it go on."""
        ...

    def hold_adapter(self, alias: str) -> HeldAdapter:
        """Keep the version that an alias stands for now; requests name it by its reference."""
        ...


class Engine(Protocol):
    """A resident model that answers many requests at once. All methods are thread-safe."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def healthy(self) -> bool:
        """False once it has stopped for good; a worker should then end itself."""
        ...

    def submit(self, request: Request) -> Future[Raw]:
        """Queue a request. Bad requests fail through the future, never here."""
        ...

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is; its future is cancelled. False if it had ended."""
        ...

    def count_tokens(self, prompt: RenderedPrompt) -> int:
        """How many tokens the prompt takes, chat format included."""
        ...

    def adapters(self) -> Mapping[str, AdapterInfo]:
        """The adapters that requests can name, by alias."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges: running, waiting, slots, tokens per second and more."""
        ...

    def close(self) -> None:
        """Stop. Requests in flight fail with `EngineStopped`."""
        ...
