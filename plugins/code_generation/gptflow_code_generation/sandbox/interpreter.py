"""The Python that guests run on, and the files that it has to read."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

GUEST = Path(__file__).resolve().parent / "guest"


def executable() -> Path:
    """The interpreter that the virtual environment, if this is one, was made from."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def readable_paths() -> tuple[Path, ...]:
    """Interpreter, standard library, shared libraries, time zones and the guests' modules."""
    configured = (sysconfig.get_config_var("LIBDIR"), sysconfig.get_path("platstdlib"))
    candidates = (
        executable(),
        Path(sysconfig.get_path("stdlib")),
        *(Path(path) for path in configured if path),
        Path("/lib"),
        Path("/lib64"),
        Path("/usr/lib"),
        Path("/usr/lib64"),
        Path("/usr/share/zoneinfo"),
        Path("/etc/ld.so.cache"),
        Path("/dev/urandom"),
        GUEST,
    )
    return tuple(dict.fromkeys(path for path in candidates if path.exists()))


def command(role: str, limits: str, work: str) -> list[str]:
    """How to start a guest: isolated from user files and environment, no site-packages."""
    flags = ("-I", "-S", "-B", "-X", "utf8")
    return [str(executable()), *flags, str(GUEST / "main.py"), role, limits, work]
