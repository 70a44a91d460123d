"""AdapterStore: the adapters on this machine's disk, and which of them is served.

<store>/
    mood/                                   an alias: what a task's head calls its adapter
        20261126-101500-5f0c2a61b09d/       a version of it, see `gptflow.adapter`
        .partial@k3j9/                      being written, or left by a process that was killed
        alias.json                          which versions were promoted, the last one is served
        .lock

A version is built aside and renamed into place when it is whole, and never changes after. An alias
is one small file that is replaced whole: a reader sees the old one or the new one, whenever it
looks and whoever is killed. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from gptflow.adapter import Manifest
from gptflow.adapter_info import MANIFEST, combine
from gptflow.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    AdapterNotFound,
    AdapterNotSaved,
    ModelCorrupt,
)
from gptflow.models.files import check_safetensors
from gptflow.suggestion import did_you_mean

ALIAS_FILE = "alias.json"

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_PARTIAL = ".partial@"
_LOCK = ".lock"
_DIGITS = 12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One adapter of the store.

    Attributes:
        name: of its folder: when it was made, and how its hash begins.
        sha256: over all its files, as results name it.
        promoted: whether it is what its alias stands for.
    """

    alias: str
    name: str
    folder: Path
    sha256: str
    manifest: Manifest
    promoted: bool

    @property
    def reference(self) -> str:
        """`alias@version`, as commands take it."""
        return f"{self.alias}@{self.name}"


@dataclasses.dataclass(slots=True)
class Draft:
    """An adapter that is being written.

    Attributes:
        version: what has become of it, once it is complete.
    """

    folder: Path
    version: AdapterVersion | None = None


class Promotion(BaseModel):
    """A version, and when its alias came to stand for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    sha256: str
    at: datetime


class _AliasFile(BaseModel):
    """What `alias.json` holds: promotions, the oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: int = 1
    history: tuple[Promotion, ...] = ()


class AdapterStore:
    """Keeps adapters by alias and version.

    Args:
        folder: `Settings.adapters`. Workers on other machines follow it where they share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def aliases(self) -> tuple[str, ...]:
        """The aliases that have a version or had one, by name."""
        try:
            found = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        except FileNotFoundError:
            return ()
        return tuple(name for name in found if _ALIAS.fullmatch(name))

    def versions(self, alias: str) -> list[AdapterVersion]:
        """The versions of an alias, the oldest first. Those that cannot be read are left out."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in (self.folder / _checked(alias)).iterdir():
                if _VERSION.fullmatch(folder.name):
                    with contextlib.suppress(AdapterCorrupt):
                        found.append(self._read(alias, folder))
        # The hash in the name says nothing about which of two of one second came first.
        return sorted(found, key=lambda v: (v.name[:15], v.folder.stat().st_mtime_ns, v.name))

    def promoted(self) -> dict[str, Promotion]:
        """What each alias stands for; those that stand for nothing are left out.

        Cheap: workers ask every second.

        Raises:
            AdapterCorrupt: an `alias.json` is malformed.
        """
        found = {alias: self.history(alias) for alias in self.aliases()}
        return {alias: history[-1] for alias, history in found.items() if history}

    def history(self, alias: str) -> tuple[Promotion, ...]:
        """The promotions of an alias, the oldest first; what was rolled back is not among them.

        Raises:
            AdapterCorrupt: its `alias.json` is malformed.
        """
        path = self.folder / _checked(alias) / ALIAS_FILE
        try:
            return _AliasFile.model_validate_json(path.read_bytes()).history
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            raise AdapterCorrupt(
                f"{path} cannot be read: {type(error).__name__}.",
                hint=f"Delete it, then run `gptflow adapters promote {alias}@VERSION`.",
            ) from None

    def find(self, reference: str) -> AdapterVersion:
        """A version by `alias@version`, where the beginning of its hash does for a version.

        An alias alone is the version that it stands for, or else the newest.

        Raises:
            AdapterNotFound: there is none, or several begin so.
            AdapterCorrupt: its manifest is malformed.
        """
        alias, at, wanted = reference.partition("@")
        alias = _checked(alias)
        found = self.versions(alias)
        if at:
            found = [
                v for v in found if wanted and (v.name == wanted or v.sha256.startswith(wanted))
            ]
        else:
            found = [version for version in found if version.promoted] or found[-1:]
        if len(found) != 1:
            known = [v.reference for a in self.aliases() for v in self.versions(a)]
            raise AdapterNotFound(
                f"There are {len(found)} adapters {reference!r} in the store."
                if found
                else f"There is no adapter {reference!r} in the store.",
                hint=did_you_mean(reference, [*self.aliases(), *known])
                or "`gptflow adapters list` shows them.",
            )
        return found[0]

    def verify(self, version: AdapterVersion, *, base: str | None = None) -> AdapterVersion:
        """Read every byte of a version and compare it with its manifest.

        Args:
            base: SHA-256 of the model that it is to be served with.

        Raises:
            AdapterCorrupt: a file is missing, altered, added, or no safetensors file.
            AdapterMismatch: it was trained on another model.
        """
        check_folder(version.folder, version.manifest, name=version.reference)
        if base is not None and base not in version.manifest.base.sha256:
            trained_on = version.manifest.base.id
            raise AdapterMismatch(
                f"Adapter {version.reference} was trained on {trained_on}, and the model served "
                "is another one.",
                hint=f"Serve it with `GPTFLOW_MODEL={trained_on}`, or train it again.",
            )
        return version

    @contextlib.contextmanager
    def build(self, alias: str) -> Iterator[Draft]:
        """A new folder to write an adapter into, its manifest last.

        When the block ends without an error, what is in the folder is checked and becomes a
        version of the alias, which `Draft.version` then has. Otherwise nothing of it is left.

        Raises:
            AdapterNotSaved: the folder cannot be written, for instance because the disk is full.
            AdapterCorrupt: what was written is no adapter.
        """
        home = self.folder / _checked(alias)
        with _writing(home):
            home.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(home / _LOCK):
                _sweep(home)
                partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
                lock = filelock.FileLock(f"{partial}.lock")
                lock.acquire()
            draft = Draft(partial)
            try:
                yield draft
                partial.chmod(0o755)  # a temporary folder lets only its owner in
                manifest = _manifest(partial, alias)
                check_folder(partial, manifest, name=alias)
                for path in (*partial.iterdir(), partial):
                    _sync(path)
                stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
                final = home / f"{stamp}-{_sha256(partial, manifest)[:_DIGITS]}"
                partial.rename(final)
                _sync(home)
                draft.version = self._read(alias, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                lock.release()
                Path(lock.lock_file).unlink(missing_ok=True)

    def promote(self, version: AdapterVersion) -> Promotion:
        """Let a version's alias stand for it. What it stood for is kept, for `rollback`.

        Raises:
            AdapterCorrupt: see `verify`.
            AdapterNotSaved: the alias cannot be written; it stands for what it stood for.
        """
        self.verify(version)
        made = Promotion(version=version.name, sha256=version.sha256, at=datetime.now(UTC))
        with self._changing(version.alias):
            history = self.history(version.alias)
            if not history or history[-1].sha256 != made.sha256:
                self._write(version.alias, (*history, made))
        return made

    def rollback(self, alias: str) -> Promotion | None:
        """Undo the last promotion of an alias.

        Returns:
            What the alias stands for now; None if for nothing, as before its first promotion.

        Raises:
            AdapterNotFound: it stands for nothing.
            AdapterCorrupt: what it stood for before is damaged; nothing was changed.
            AdapterNotSaved: the alias cannot be written; it stands for what it stood for.
        """
        with self._changing(alias):
            history = self.history(alias)
            if not history:
                raise AdapterNotFound(
                    f"The alias {alias!r} stands for nothing, so there is nothing to undo.",
                    hint="`gptflow adapters list` shows what is promoted.",
                )
            before = history[-2] if len(history) > 1 else None
            if before is not None:
                self.verify(self.find(f"{alias}@{before.version}"))
            self._write(alias, history[:-1])
        return before

    def _read(self, alias: str, folder: Path) -> AdapterVersion:
        manifest = _manifest(folder, alias)
        history = self.history(alias)
        return AdapterVersion(
            alias=alias,
            name=folder.name,
            folder=folder,
            sha256=_sha256(folder, manifest),
            manifest=manifest,
            promoted=bool(history) and history[-1].version == folder.name,
        )

    @contextlib.contextmanager
    def _changing(self, alias: str) -> Iterator[None]:
        """One process at a time moves an alias."""
        home = self.folder / _checked(alias)
        if not home.is_dir():
            raise AdapterNotFound(
                f"There is no adapter {alias!r} in the store.",
                hint=did_you_mean(alias, self.aliases()) or "`gptflow adapters list` shows them.",
            )
        with _writing(home), filelock.FileLock(home / _LOCK):
            yield

    def _write(self, alias: str, history: tuple[Promotion, ...]) -> None:
        home = self.folder / alias
        for left in home.glob(f".{ALIAS_FILE}.*"):
            left.unlink(missing_ok=True)  # of a process that was killed while it held the lock
        handle, name = tempfile.mkstemp(prefix=f".{ALIAS_FILE}.", dir=home)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_AliasFile(history=history).model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, home / ALIAS_FILE)
            _sync(home)
        finally:
            Path(name).unlink(missing_ok=True)


def open_folder(folder: Path) -> AdapterVersion:
    """An adapter outside of any store, such as one that a plugin ships, checked byte for byte.

    Raises:
        AdapterCorrupt: the folder holds none, or it is damaged.
    """
    manifest = _manifest(folder, folder.name)
    check_folder(folder, manifest, name=folder.name)
    return AdapterVersion(
        alias=folder.name,
        name=folder.name,
        folder=folder,
        sha256=_sha256(folder, manifest),
        manifest=manifest,
        promoted=False,
    )


def check_folder(folder: Path, manifest: Manifest, *, name: str) -> None:
    """Compare a folder's files with its manifest, byte for byte.

    Raises:
        AdapterCorrupt: a file is missing, altered or not listed, or one that should be is no
            safetensors file.
    """
    again = "Copy the adapter again, or train it again."
    for file, expected in manifest.files.items():
        try:
            if file.endswith(".safetensors"):
                check_safetensors(folder / file)
            with (folder / file).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except ModelCorrupt as error:
            raise AdapterCorrupt(f"Adapter {name}: {error.message}", hint=again) from None
        except OSError as error:
            raise AdapterCorrupt(
                f"Adapter {name}: {file} cannot be read: {error.strerror}.", hint=again
            ) from None
        if found != expected:
            raise AdapterCorrupt(
                f"Adapter {name}: {file} has been altered: its SHA-256 is not the manifest's.",
                hint=again,
            )
    if added := sorted({path.name for path in folder.iterdir()} - {*manifest.files, MANIFEST}):
        raise AdapterCorrupt(f"Adapter {name}: its manifest does not list {added[0]}.", hint=again)


def _sweep(home: Path) -> None:
    """Delete what killed processes left: one that still writes holds its folder's lock."""
    for partial in [path for path in home.glob(f"{_PARTIAL}*") if path.is_dir()]:
        lock = filelock.FileLock(f"{partial}.lock")
        with contextlib.suppress(filelock.Timeout), lock.acquire(0):
            shutil.rmtree(partial, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _manifest(folder: Path, alias: str) -> Manifest:
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise AdapterCorrupt(
            f"Adapter {alias!r}: {folder / MANIFEST} cannot be read: {error.strerror}."
        ) from None
    return Manifest.parse(text, name=alias)


def _sha256(folder: Path, manifest: Manifest) -> str:
    """As `gptflow.engine.adapters` has it."""
    own = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return combine({**manifest.files, MANIFEST: own})


def _checked(alias: str) -> str:
    if not _ALIAS.fullmatch(alias):
        raise AdapterNotFound(
            f"{alias!r} is no adapter's name: lower-case letters, digits, dots, - and _.",
            hint="`gptflow adapters list` shows them.",
        )
    return alias


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdapterNotSaved(
            f"Writing to {home} failed: {error.strerror or error}.",
            hint="Make room, or set GPTFLOW_ADAPTERS to a folder that can be written.",
        ) from None
