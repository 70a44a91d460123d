"""What the probe has tried from inside: everything that contained code must not manage.

Each attempt returns whether it got away with it; an exception means that it was stopped.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
FORKS = 8
"""As many processes as an attempt may leave behind before it counts as a fork bomb."""


def read_file(targets: Targets) -> bool:
    return bool(Path(targets["secret_file"]).read_text(encoding="utf-8"))


def read_through_link(targets: Targets) -> bool:
    os.symlink(targets["secret_file"], "link")
    return bool(Path("link").read_text(encoding="utf-8"))


def list_folder(targets: Targets) -> bool:
    return bool(os.listdir(Path(targets["secret_file"]).parent))


def write_file(targets: Targets) -> bool:
    return Path(targets["written_file"]).write_text("x", encoding="utf-8") == 1


def delete_file(targets: Targets) -> bool:
    os.unlink(targets["secret_file"])
    return True


def connect_tcp(targets: Targets) -> bool:
    with socket.create_connection(("127.0.0.1", targets["tcp_port"]), timeout=1):
        return True


def send_udp(targets: Targets) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        return udp.sendto(b"x", ("127.0.0.1", targets["udp_port"])) == 1


def connect_unix(targets: Targets) -> bool:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(targets["unix_socket"])
        return True


def read_own_environment(targets: Targets) -> bool:
    return targets["secret_variable"] in os.environ


def read_other_environments(targets: Targets) -> bool:
    name = str(targets["secret_variable"]).encode()
    for process in (*os.listdir("/proc"), str(os.getppid())):
        try:
            if name in Path("/proc", process, "environ").read_bytes():
                return True
        except OSError:
            continue
    return False


def signal_others(targets: Targets) -> bool:
    os.kill(targets["victim"], signal.SIGKILL)
    return True


def fork_bomb(targets: Targets) -> bool:
    for _ in range(FORKS):
        if os.fork() == 0:
            signal.pause()
    return True


def raise_limits(targets: Targets) -> bool:
    _, ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ceiling + 1, ceiling + 1))
    return True


def write_large_file(targets: Targets) -> bool:
    with open("large", "wb") as large:
        return large.write(b"x" * (targets["file_bytes"] + 1)) > int(targets["file_bytes"])


def take_memory(targets: Targets) -> bool:
    return len(bytearray(targets["memory_bytes"])) > 0


ATTEMPTS: tuple[Callable[[Targets], bool], ...] = (
    read_file,
    read_through_link,
    list_folder,
    write_file,
    delete_file,
    connect_tcp,
    send_udp,
    connect_unix,
    read_own_environment,
    read_other_environments,
    signal_others,
    fork_bomb,
    raise_limits,
    write_large_file,
    take_memory,
)


def run(work: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Make every attempt on the targets in `targets.json`, and report each outcome."""
    targets = json.loads((work / "targets.json").read_text(encoding="utf-8"))
    for attempt in ATTEMPTS:
        try:
            managed = attempt(targets)
        except Exception:  # noqa: BLE001  being stopped takes many forms
            managed = False
        report({"attempt": attempt.__name__, "managed": managed})
    report({"finished": True})
