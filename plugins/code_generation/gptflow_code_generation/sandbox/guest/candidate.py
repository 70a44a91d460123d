"""The candidate's side: load the generated code, then do what the judge asks."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from gptflow_code_generation.sandbox.guest.peer import ANYTHING, Peer, describe
from gptflow_code_generation.sandbox.guest.wire import Channel


def run(channel: Channel, work: Path) -> None:
    """Load `code.py` from the work folder, say what it defines, and serve."""
    peer = Peer(channel, ANYTHING)
    module = types.ModuleType("candidate")
    try:
        code = compile((work / "code.py").read_text(encoding="utf-8"), "code.py", "exec")
        exec(code, vars(module))  # noqa: S102  what the sandbox is for
    except BaseException as error:  # noqa: BLE001  sys.exit included
        channel.send(describe(error))
        return
    channel.send({"names": {name: peer.encode(value) for name, value in _public(module)}})
    peer.serve()


def _public(module: types.ModuleType) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, types.ModuleType)
    ]
