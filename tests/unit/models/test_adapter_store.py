"""The adapter store: versions are whole or not there, and an alias moves in one piece."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptflow.adapter import Manifest
from gptflow.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    AdapterNotFound,
    AdapterNotSaved,
)
from gptflow.models.adapter_store import ALIAS_FILE, AdapterStore, AdapterVersion

BASE = "b" * 64


def write(folder: Path, value: float = 0.0, **fields: Any) -> None:
    """A folder with a head of two labels, and its manifest."""
    save_file({"mood.weight": np.full((2, 4), value, np.float32)}, folder / "head.safetensors")
    (folder / "README.md").write_text("A card.")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    manifest = {
        "task": "demo.mood",
        "base": {"id": "base", "sha256": [BASE]},
        "heads": {"mood": {"kind": "classify", "labels": ["good", "bad"]}},
        "files": files,
    } | fields
    (folder / "manifest.json").write_text(json.dumps(manifest))


def add(store: AdapterStore, value: float = 0.0, alias: str = "mood") -> AdapterVersion:
    with store.build(alias) as draft:
        write(draft.folder, value)
    assert draft.version is not None
    return draft.version


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def everything(store: AdapterStore) -> set[str]:
    """Every path below the store but for locks."""
    found = (str(p.relative_to(store.folder)) for p in store.folder.rglob("*"))
    return {path for path in found if not path.endswith(".lock")}


def test_an_empty_store_has_nothing(store: AdapterStore) -> None:
    assert store.aliases() == ()
    assert store.promoted() == {}
    with pytest.raises(AdapterNotFound, match="no adapter 'mood'"):
        store.find("mood")


def test_versions_are_found_by_name_hash_or_alias_alone(store: AdapterStore) -> None:
    first, second = add(store, 1), add(store, 2)
    assert [v.name for v in store.versions("mood")] == [first.name, second.name]
    assert store.find("mood") == second  # the newest, while none is promoted
    assert store.find(f"mood@{first.sha256[:7]}") == first
    assert store.find(first.reference) == first
    promoted = store.promote(first)
    assert store.find("mood").name == first.name == promoted.version
    assert store.find("mood").promoted
    for wrong in ("mood@", "mood@zzz", "mod", "mood@" + "0" * 12):
        with pytest.raises(AdapterNotFound):
            store.find(wrong)
    with pytest.raises(AdapterNotFound, match="Did you mean 'mood'"):
        store.find("mod")


@pytest.mark.parametrize("name", ["../mood", "", "Mood", "a/b", ".hidden"])
def test_an_alias_is_a_plain_name(store: AdapterStore, name: str) -> None:
    with pytest.raises(AdapterNotFound), store.build(name):
        pass
    with pytest.raises(AdapterNotFound):
        store.find(name)


def test_promote_and_rollback_undo_each_other(store: AdapterStore) -> None:
    first, second = add(store, 1), add(store, 2)
    store.promote(first)
    store.promote(second)
    store.promote(second)  # promoting what is promoted changes nothing
    assert [p.version for p in store.history("mood")] == [first.name, second.name]
    before = store.rollback("mood")
    assert before is not None
    assert before.version == first.name
    assert store.promoted()["mood"].sha256 == first.sha256
    assert second.folder.is_dir()
    assert store.rollback("mood") is None
    assert store.promoted() == {}
    with pytest.raises(AdapterNotFound, match="nothing to undo"):
        store.rollback("mood")


def test_one_alias_leaves_the_others_alone(store: AdapterStore) -> None:
    mood, topic = add(store), add(store, alias="topic")
    store.promote(mood)
    store.promote(topic)
    store.rollback("topic")
    assert set(store.promoted()) == {"mood"}


def test_what_fails_while_it_is_written_leaves_nothing(store: AdapterStore) -> None:
    add(store)
    before = everything(store)

    def fail(error: Exception | None) -> None:
        with store.build("mood") as draft:
            (draft.folder / "head.safetensors").write_bytes(b"half")  # and no manifest
            if error is not None:
                raise error

    for raised, expected in (
        (KeyError("something broke"), KeyError),
        (OSError(28, "No space left on device"), AdapterNotSaved),
        (None, AdapterCorrupt),
    ):
        with pytest.raises(expected):
            fail(raised)
        assert everything(store) == before


def test_a_full_disk_while_an_alias_moves_leaves_it_where_it_was(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = add(store, 1), add(store, 2)
    store.promote(first)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterNotSaved, match="No space left"):
        store.promote(second)
    monkeypatch.undo()
    assert store.promoted()["mood"].version == first.name
    assert not list((store.folder / "mood").glob(f".{ALIAS_FILE}*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from gptflow.models.adapter_store import AdapterStore
store = AdapterStore(Path(sys.argv[1]))
if sys.argv[2] == "save":
    with store.build("mood") as draft:
        (draft.folder / "head.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
replace = os.replace
def kill(*arguments):
    if sys.argv[2] == "after":
        replace(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = kill
store.promote(store.versions("mood")[-1])
"""


@pytest.mark.parametrize(("when", "serves"), [("save", 0), ("before", 0), ("after", 1)])
def test_a_kill_leaves_the_old_or_the_new(store: AdapterStore, when: str, serves: int) -> None:
    versions = [add(store, 1), add(store, 2)]
    store.promote(versions[0])
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.folder), when], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert store.promoted()["mood"].version == versions[serves].name
    assert len(store.versions("mood")) == 2  # what was half written is no version
    store.promote(versions[1])  # and its lock went with the process
    store.promote(versions[0])
    third = add(store, 3)
    left = {path.name for path in (store.folder / "mood").iterdir() if path.name[0] != "."}
    assert left == {*(v.name for v in (*versions, third)), ALIAS_FILE}
    assert not [p for p in (store.folder / "mood").iterdir() if "partial" in p.name]


def test_another_process_that_writes_is_left_alone(store: AdapterStore) -> None:
    with store.build("mood") as draft:
        write(draft.folder, 1)
        inner = add(store, 2)  # sweeps what killed processes left
        assert draft.folder.is_dir()
    assert {v.name for v in store.versions("mood")} == {inner.name, draft.version.name}  # type: ignore[union-attr]


def tamper(version: AdapterVersion, how: str) -> None:
    head = version.folder / "head.safetensors"
    match how:
        case "altered":
            data = bytearray(head.read_bytes())
            data[-1] ^= 1
            head.write_bytes(data)
        case "missing":
            head.unlink()
        case "added":
            (version.folder / "extra.bin").write_bytes(b"x")
        case "pickle":
            head.write_bytes(pickle.dumps({"mood.weight": [1.0]}))
        case "header":
            head.write_bytes((2**63).to_bytes(8, "little") + head.read_bytes()[8:])
        case "truncated":
            head.write_bytes(head.read_bytes()[:-4])
        case "card":
            (version.folder / "README.md").write_text("Much better than it is.")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("altered", "SHA-256"),
        ("missing", "cannot be read"),
        ("added", "does not list extra.bin"),
        ("pickle", "pickle"),
        ("header", "header claims 9223372036854775808 bytes"),
        ("truncated", "not a safetensors file"),
        ("card", "README.md has been altered"),
    ],
)
def test_what_was_tampered_with_is_refused(store: AdapterStore, how: str, told: str) -> None:
    good, bad = add(store, 1), add(store, 2)
    store.promote(good)
    tamper(bad, how)
    with pytest.raises(AdapterCorrupt, match=told):
        store.verify(bad)
    with pytest.raises(AdapterCorrupt):
        store.promote(bad)
    assert store.promoted()["mood"].version == good.name


def test_a_rollback_to_what_is_damaged_changes_nothing(store: AdapterStore) -> None:
    first, second = add(store, 1), add(store, 2)
    store.promote(first)
    store.promote(second)
    tamper(first, "altered")
    with pytest.raises(AdapterCorrupt):
        store.rollback("mood")
    assert store.promoted()["mood"].version == second.name


def test_a_pickle_under_another_name_is_not_even_saved(store: AdapterStore) -> None:
    def save() -> None:
        with store.build("mood") as draft:
            write(draft.folder, 1)
            head = draft.folder / "head.safetensors"
            head.write_bytes(pickle.dumps([1]))
            manifest = json.loads((draft.folder / "manifest.json").read_text())
            manifest["files"][head.name] = hashlib.sha256(head.read_bytes()).hexdigest()
            (draft.folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(AdapterCorrupt, match="pickle"):
        save()
    assert store.versions("mood") == []


def test_another_base_model_is_refused(store: AdapterStore) -> None:
    version = add(store)
    assert store.verify(version, base=BASE) == version
    with pytest.raises(AdapterMismatch, match="GPTFLOW_MODEL=base"):
        store.verify(version, base="c" * 64)


def test_a_damaged_alias_is_named(store: AdapterStore) -> None:
    version = add(store)
    path = store.folder / "mood" / ALIAS_FILE
    path.write_text('{"v": 1, "history": [')
    with pytest.raises(AdapterCorrupt, match="cannot be read"):
        store.promoted()
    path.unlink()
    assert store.find("mood") == version


def manifest(**fields: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "task": "demo.mood",
            "base": {"id": "base", "sha256": [BASE]},
            "heads": {"mood": {"kind": "classify", "labels": ["good", "bad"]}},
            "files": {},
        }
        | fields
    )


@pytest.mark.parametrize(
    ("metrics", "gates", "missed"),
    [
        ({"f1": {"value": 0.9, "floor": 0.8}}, {}, []),
        ({"f1": {"value": 0.8, "floor": 0.8}}, {}, ["f1 is 0.800, and a simple model"]),
        ({"f1": {"value": 0.9}}, {"f1": 0.95}, ["f1 is 0.900, not ≥ 0.95"]),
        ({"f1": {"value": 0.9}, "ece": {"value": 0.1}}, {"ece": 0.04}, ["ece is 0.100, not ≤"]),
        ({"f1": {"value": 0.9}, "ece": {"value": 0.03}}, {"f1": 0.9, "ece": 0.04}, []),
        ({"f1": {"value": 0.9}}, {"recall": 0.5}, ["recall was not measured"]),
        (
            {"f1": {"value": 0.9, "floor": 0.8}, "topic.f1": {"value": 0.7, "floor": 0.75}},
            {},
            ["topic.f1 is 0.700"],
        ),
    ],
)
def test_gates_and_floors_are_told_in_words(
    metrics: dict[str, Any], gates: dict[str, float], missed: list[str]
) -> None:
    told = manifest(metrics=metrics, gates=gates, primary="f1").missed()
    assert len(told) == len(missed)
    assert all(words.startswith(start) for words, start in zip(told, missed, strict=True))
