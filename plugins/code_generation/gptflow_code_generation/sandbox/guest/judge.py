"""The judge's side: run each test, with the candidate's names bound to remote things."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gptflow_code_generation.sandbox.guest.peer import CALL_ONLY, Peer, describe
from gptflow_code_generation.sandbox.guest.wire import Channel, Disconnected

Report = Callable[[dict[str, Any]], None]


def run(channel: Channel, work: Path, report: Report) -> None:
    """Run the tests of `tests.json` in the work folder, and report each outcome."""
    given = json.loads((work / "tests.json").read_text(encoding="utf-8"))
    try:
        answer = channel.receive()
        if "error" in answer:
            report({"load": answer})
            return
        peer = Peer(channel, CALL_ONLY)
        names = {name: peer.decode(value) for name, value in answer["names"].items()}
        namespace: dict[str, Any] = {}
        exec(given["imports"], namespace)  # noqa: S102  the tests are the caller's own
        namespace |= subjects(given["tests"], names, reserved=namespace)
        for test in given["tests"]:
            report({"test": _outcome(test, namespace)})
    except (Disconnected, KeyError):
        report({"gone": True})


def subjects(
    tests: Iterable[str], names: dict[str, Any], reserved: Iterable[str]
) -> dict[str, Any]:
    """Which of the candidate's names the tests are about.

    A candidate that defines its own `all` or `set` must not change what a test means by them,
    unless that is what the tests are about: they use no other name of the candidate's.
    """
    nodes = (node for test in tests for node in ast.walk(ast.parse(test)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    own = {name: value for name, value in names.items() if name in used}
    foreign = {*dir(builtins), *reserved}
    return {name: value for name, value in own.items() if name not in foreign} or own


def _outcome(test: str, namespace: dict[str, Any]) -> dict[str, Any] | None:
    """None for a pass, else what was raised."""
    try:
        exec(compile(test, "test", "exec"), namespace)  # noqa: S102  the caller's own
    except Disconnected:
        raise
    except BaseException as error:  # noqa: BLE001  whatever a test raises
        return describe(error)
    return None
