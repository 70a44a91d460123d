"""Building: from the kernels' source to a shared library in the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).parent / "kernels"
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",  # resolves to the runtime that torch has loaded: one pool of threads for both
    "-fno-math-errno",
)
_SECONDS = 300


class Unavailable(Exception):
    """The kernels cannot be used here; the message says why."""


def build() -> Path:
    """The library's path; compiles it unless it is in the cache already.

    A second process waits for the first.

    Raises:
        Unavailable: there is no compiler, or it refuses the source for this processor.
    """
    # Not at the top: where there is a GPU, torch and transformers are enough.
    import platformdirs
    from filelock import FileLock

    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if platform.system() != "Linux":
        raise Unavailable("the kernels are built on Linux only")
    if compiler is None:
        raise Unavailable("there is no C++ compiler (g++ or clang++)")
    sources = {path.name: path.read_bytes() for path in sorted(_SOURCE.iterdir())}
    folder = platformdirs.user_cache_path("gptflow") / "kernels"
    target = folder / f"{_fingerprint(compiler, sources)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / ".lock"):
            if not target.is_file():
                _compile(compiler, target)
    except OSError as error:
        raise Unavailable(f"the kernels cannot be kept in {folder}: {error.strerror}") from error
    return target


def _fingerprint(compiler: str, sources: dict[str, bytes]) -> str:
    """Names all that the library depends on, the processor first of all."""
    digest = hashlib.sha256(repr((compiler, _FLAGS, _processor())).encode())
    for name, source in sources.items():
        digest.update(name.encode() + b"\0" + source)
    return digest.hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags")
    return "\n".join(next((ln for ln in lines if ln.startswith(name)), "") for name in wanted)


def _compile(compiler: str, target: Path) -> None:
    began = time.perf_counter()
    # A name of its own first: a build that is killed leaves nothing under the final one.
    handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    command = [compiler, *_FLAGS, str(_SOURCE / "kernels.cpp"), "-o", name]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if result.returncode:
            log.debug("%s\n%s", " ".join(command), result.stderr)
            wrong = [line for line in result.stderr.splitlines() if "error" in line]
            raise Unavailable(f"{compiler} failed: {(wrong or ['no message'])[0].strip()}")
        partial.replace(target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{compiler} did not end within {_SECONDS} s") from None
    finally:
        partial.unlink(missing_ok=True)
    log.info("kernels built in %.0f s: %s", time.perf_counter() - began, target)
