"""A worker follows the store's aliases, and serves on what it has when that is not to be had."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptflow import Classify, Input, MultiHead, Output, Task
from gptflow.adapter_info import AdapterInfo
from gptflow.errors import AdapterMemoryFull
from gptflow.models.adapter_store import AdapterStore, AdapterVersion
from gptflow.queue.adapters import AdapterFollower, shipped
from gptflow.request import ModelInfo, ServesAdapters
from gptflow.testing import ScriptedEngine

BASE = "b" * 64


class FakeEngine:
    """Keeps what it is told to load."""

    def __init__(self) -> None:
        self.model = ModelInfo(id="base", sha256=BASE, context=64)
        self.loaded: dict[str, Path] = {}
        self.loads = 0
        self.full = False

    def load_adapter(self, alias: str, folder: str | Path) -> AdapterInfo:
        self.loads += 1
        if self.full:
            raise AdapterMemoryFull("No room.")
        self.loaded[alias] = Path(folder)
        return AdapterInfo(alias=alias, sha256="0", manifest=None, rank=0, nbytes=0)

    def unload_adapter(self, alias: str) -> None:
        del self.loaded[alias]

    def hold_adapter(self, alias: str) -> Any:
        raise NotImplementedError


def write(folder: Path, value: float, base: str = BASE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"mood.weight": np.full((2, 4), value, np.float32)}, folder / "head.safetensors")
    digest = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    manifest = {
        "task": "demo.mood",
        "base": {"id": "base", "sha256": [base]},
        "heads": {"mood": {"kind": "classify", "labels": ["good", "bad"]}},
        "files": {"head.safetensors": digest},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def add(store: AdapterStore, value: float, base: str = BASE) -> AdapterVersion:
    with store.build("mood") as draft:
        write(draft.folder, value, base)
    assert draft.version is not None
    return draft.version


@pytest.fixture
def world(tmp_path: Path) -> SimpleNamespace:
    engine: Any = FakeEngine()
    store = AdapterStore(tmp_path / "adapters")
    return SimpleNamespace(
        engine=engine,
        store=store,
        follower=AdapterFollower(engine, store, {}, seconds=0.02),
        tmp_path=tmp_path,
    )


def test_an_engine_is_asked_whether_it_serves_adapters(world: SimpleNamespace) -> None:
    assert isinstance(world.engine, ServesAdapters)
    assert not isinstance(ScriptedEngine(), ServesAdapters)
    follower = AdapterFollower(ScriptedEngine(), world.store, {})
    follower.start()  # leaves it alone
    follower.stop()


def test_aliases_are_followed_there_and_back(world: SimpleNamespace) -> None:
    first, second = add(world.store, 1), add(world.store, 2)
    world.follower.refresh()
    assert world.engine.loaded == {}  # made, but not promoted
    for version in (first, second):
        world.store.promote(version)
        world.follower.refresh()
        assert world.engine.loaded == {"mood": version.folder}
    world.store.rollback("mood")
    world.follower.refresh()
    assert world.engine.loaded == {"mood": first.folder}
    world.store.rollback("mood")
    world.follower.refresh()
    assert world.engine.loaded == {}
    assert world.engine.loads == 3


def test_what_has_not_changed_is_not_loaded_again(world: SimpleNamespace) -> None:
    world.store.promote(add(world.store, 1))
    for _ in range(5):
        world.follower.refresh()
    assert world.engine.loads == 1


def test_it_follows_by_itself(world: SimpleNamespace) -> None:
    version = add(world.store, 1)
    world.follower.start()
    try:
        world.store.promote(version)
        done = threading.Event()
        for _ in range(250):
            if world.engine.loaded or done.wait(0.02):
                break
        assert world.engine.loaded == {"mood": version.folder}
    finally:
        world.follower.stop()


def test_a_damaged_version_changes_nothing_and_is_told_once(
    world: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = add(world.store, 1), add(world.store, 2)
    world.store.promote(good)
    world.follower.refresh()
    world.store.promote(bad)
    (bad.folder / "head.safetensors").write_bytes(b"nonsense")
    for _ in range(3):
        world.follower.refresh()
    assert world.engine.loaded == {"mood": good.folder}
    told = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == 1
    assert "what was served before is served on" in told[0].getMessage()
    world.store.rollback("mood")
    world.follower.refresh()
    assert world.engine.loads == 1


def test_a_version_for_another_model_changes_nothing(
    world: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    good, other = add(world.store, 1), add(world.store, 2, base="c" * 64)
    world.store.promote(good)
    world.follower.refresh()
    world.store.promote(other)
    for _ in range(3):
        world.follower.refresh()
    assert world.engine.loaded == {"mood": good.folder}
    assert sum("trained on base" in r.getMessage() for r in caplog.records) == 1


def test_where_there_is_no_room_yet_it_is_tried_again(world: SimpleNamespace) -> None:
    version = add(world.store, 1)
    world.store.promote(version)
    world.engine.full = True
    world.follower.refresh()
    world.engine.full = False
    world.follower.refresh()
    assert world.engine.loaded == {"mood": version.folder}


def test_an_alias_file_that_cannot_be_read_changes_nothing(world: SimpleNamespace) -> None:
    version = add(world.store, 1)
    world.store.promote(version)
    world.follower.refresh()
    (world.store.folder / "mood" / "alias.json").write_text("{")
    world.follower.refresh()
    assert world.engine.loaded == {"mood": version.folder}


def test_a_shipped_adapter_is_served_until_one_is_promoted(world: SimpleNamespace) -> None:
    folder = world.tmp_path / "plugin" / "adapters" / "mood"
    write(folder, 9)
    follower = AdapterFollower(world.engine, world.store, {"mood": folder})
    follower.refresh()
    assert world.engine.loaded == {"mood": folder}
    version = add(world.store, 1)
    world.store.promote(version)
    follower.refresh()
    assert world.engine.loaded == {"mood": version.folder}
    world.store.rollback("mood")
    follower.refresh()
    assert world.engine.loaded == {"mood": folder}


@pytest.mark.parametrize(("now", "warned"), [("a" * 64, 0), ("d" * 64, 1)])
def test_an_adapter_that_was_trained_with_another_prompt_is_served_with_a_warning(
    world: SimpleNamespace, caplog: pytest.LogCaptureFixture, now: str, warned: int
) -> None:
    folder = world.tmp_path / "plugin" / "adapters" / "mood"
    write(folder, 9)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"prompt": "a" * 64}))
    AdapterFollower(world.engine, world.store, {"mood": folder}, {"demo.mood": now}).refresh()
    assert world.engine.loaded == {"mood": folder}
    assert sum("another prompt" in record.getMessage() for record in caplog.records) == warned


def test_a_shipped_adapter_for_another_model_is_passed_over(world: SimpleNamespace) -> None:
    folder = world.tmp_path / "plugin" / "adapters" / "mood"
    write(folder, 9, base="c" * 64)
    world.engine.load_adapter = _refuse_other_models
    follower = AdapterFollower(world.engine, world.store, {"mood": folder})
    follower.refresh()
    follower.refresh()
    assert world.engine.loaded == {}


def _refuse_other_models(alias: str, folder: Path) -> AdapterInfo:
    from gptflow.errors import AdapterMismatch

    raise AdapterMismatch("It was trained on another model.")


class Post(Input):
    text: str


class Label(Output):
    label: str


class Mood(Task[Post, Any, Label]):
    """A task whose package ships an adapter."""

    name = "demo.mood"
    head = MultiHead(heads={"a": Classify(labels=("x", "y"), adapter="part")}, adapter="whole")
    home: Path

    @property
    def directory(self) -> Path:
        return self.home


def test_adapters_beside_a_tasks_module_are_found(tmp_path: Path) -> None:
    Mood.home = tmp_path
    for alias in ("whole", "part", "stranger"):
        write(tmp_path / "adapters" / alias, 1)
    found = shipped([Mood()])
    assert found == {a: tmp_path / "adapters" / a for a in ("whole", "part")}
