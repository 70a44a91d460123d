"""Writes Python functions, checks them and runs their tests in a sandbox."""

from __future__ import annotations

from typing import Any

from gptflow.hookspecs import hookimpl


@hookimpl
def register_tasks(register: Any) -> None:
    # Imported here, so that the sandbox's supervisor starts without it.
    from gptflow_code_generation.task import GenerateCode

    register(GenerateCode())
