"""Fixtures for plugin authors; pytest finds them through the entry point `pytest11`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gptflow.client import Client
    from gptflow.plugins import Registry
    from gptflow.testing import ScriptedEngine


@pytest.fixture
def scripted_engine() -> ScriptedEngine:
    """An engine that answers from a script; the default one always says the same."""
    from gptflow.testing import ScriptedEngine

    return ScriptedEngine()


@pytest.fixture
def flow_registry() -> Registry:
    """The plugins that `flow` serves: the installed ones. Override it to serve others."""
    from gptflow.plugins import Registry

    return Registry.load()


@pytest.fixture
def flow(scripted_engine: ScriptedEngine, flow_registry: Registry) -> Iterator[Client]:
    """A client whose worker is inside the test, on the scripted engine."""
    from gptflow.client import Client

    with Client("memory://", engine=scripted_engine, registry=flow_registry) as client:
        yield client
