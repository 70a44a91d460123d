"""Adapters that a worker serves: what the store's aliases stand for, followed while it runs.

Once a second the aliases are read again. What has been promoted or rolled back is loaded beside
what is served; requests that have begun keep the version they began with, and so do all others of
the same job (see `gptflow.context`). A version that cannot be loaded changes nothing: what was
served before is served on. A task's own adapter, shipped in its package as `adapters/ALIAS/`, is
served where the store's alias stands for nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from gptflow.adapter import Manifest
from gptflow.adapter_info import MANIFEST
from gptflow.config import Settings
from gptflow.errors import AdapterMemoryFull, AdapterMismatch, GPTFlowError
from gptflow.heads import Head, MultiHead
from gptflow.models.adapter_store import AdapterStore, check_folder
from gptflow.plugins import AnyTask, Registry
from gptflow.request import Engine, ServesAdapters

logger = logging.getLogger(__name__)

SECONDS = 1.0
"""Between two looks at the aliases."""


def shipped(tasks: Iterable[AnyTask]) -> dict[str, Path]:
    """By alias, the adapters that come with the packages of these tasks."""
    found: dict[str, Path] = {}
    for task in tasks:
        for alias in aliases_of(task.head):
            folder = task.directory / "adapters" / alias
            if (folder / MANIFEST).is_file():
                found.setdefault(alias, folder)
    return found


def aliases_of(head: Head | None) -> tuple[str, ...]:
    """The adapters that a head names, and those that its parts do."""
    parts = (head, *head.heads.values()) if isinstance(head, MultiHead) else (head,)
    return tuple(part.adapter for part in parts if part is not None and part.adapter is not None)


def prompts(tasks: Iterable[AnyTask]) -> dict[str, str]:
    """By task, the SHA-256 of its prompt's template."""
    return {task.name: task.prompt.sha256 for task in tasks if task.prompt is not None}


class AdapterFollower:
    """Keeps an engine's adapters those that the store's aliases stand for.

    Args:
        engine: one that does not read adapters from folders is left alone.
        shipped: by alias, folders that are served where the store has nothing.
        prompts: see `prompts`; an adapter that was trained with another prompt is served with a
            warning.
    """

    def __init__(
        self,
        engine: Engine,
        store: AdapterStore,
        shipped: Mapping[str, Path],
        prompts: Mapping[str, str] | None = None,
        *,
        seconds: float = SECONDS,
    ) -> None:
        self._engine = engine if isinstance(engine, ServesAdapters) else None
        self._model = engine.model.sha256
        self._store = store
        self._shipped = shipped
        self._prompts = prompts or {}
        self._seconds = seconds
        self._served: dict[str, str] = {}  # by alias, the version: its hash, or its folder
        self._refused: dict[str, str] = {}
        self._unfit: dict[str, str] = {}  # by alias, the version that is for another model
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gptflow-adapters", daemon=True)

    @classmethod
    def of(cls, engine: Engine, settings: Settings, registry: Registry) -> AdapterFollower:
        """A follower of the settings' store, for the tasks of a worker."""
        tasks = registry.tasks.values()
        store = AdapterStore(settings.adapters_dir)
        return cls(engine, store, shipped(tasks), prompts(tasks))

    def start(self) -> None:
        """Load what is promoted, and follow it from now on."""
        self.refresh()
        if self._engine is not None:
            self._thread.start()

    def stop(self) -> None:
        """Follow no more; what is loaded stays."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Look at the aliases once."""
        if self._engine is None:
            return
        try:
            promoted = self._store.promoted()
        except (GPTFlowError, OSError) as error:
            self._refuse("", "", str(error))
            return
        wanted = {alias: str(folder) for alias, folder in self._shipped.items()}
        wanted |= {alias: promotion.sha256 for alias, promotion in promoted.items()}
        for alias, version in wanted.items():
            if version not in (self._served.get(alias), self._unfit.get(alias)):
                self._load(alias, version, promoted[alias].version if alias in promoted else None)
        for alias in self._served.keys() - wanted.keys():
            self._unload(alias)

    def _unload(self, alias: str) -> None:
        assert self._engine is not None
        self._engine.unload_adapter(alias)
        del self._served[alias]
        logger.info("Adapter %s is not promoted any more; the base model answers.", alias)

    def _load(self, alias: str, version: str, name: str | None) -> None:
        """Load a version of the store, or one that is shipped where it has no name."""
        assert self._engine is not None
        try:
            if name is None:
                folder = Path(version)
                manifest = Manifest.parse((folder / MANIFEST).read_bytes(), name=alias)
                check_folder(folder, manifest, name=alias)
            else:
                found = self._store.verify(self._store.find(f"{alias}@{name}"), base=self._model)
                folder, manifest = found.folder, found.manifest
            info = self._engine.load_adapter(alias, folder)
        except AdapterMemoryFull as error:  # there will be room when what runs has ended
            self._refuse(alias, version, str(error), again=True)
        except AdapterMismatch as error:
            self._unfit[alias] = version
            if name is not None:
                self._refuse(alias, version, str(error))
                return
            # Made for the default model, and another one is served.
            logger.info("Adapter %s, which a plugin ships, is not served: %s", alias, error)
            if alias in self._served:
                self._unload(alias)
        except (GPTFlowError, OSError) as error:
            self._refuse(alias, version, str(error))
        else:
            self._served[alias] = version
            self._refused.pop(alias, None)
            self._unfit.pop(alias, None)
            logger.info("Adapter %s is served.", info.reference)
            now = self._prompts.get(manifest.task)
            if manifest.prompt is not None and now not in (None, manifest.prompt):
                logger.warning(
                    "Adapter %s was trained with another prompt than task %s has now. Train it "
                    "again.",
                    alias,
                    manifest.task,
                )

    def _refuse(self, alias: str, version: str, why: str, *, again: bool = False) -> None:
        """Say once what is wrong with a version; it is tried again all the same."""
        if self._refused.get(alias) == (told := f"{version} {why}"):
            return
        self._refused[alias] = told
        before = (
            "what was served before is served on" if alias in self._served else "none is served"
        )
        log = logger.warning if again else logger.error
        log("Adapter %s cannot be loaded, %s: %s", alias or "aliases", before, why)

    def _follow(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self.refresh()
            except Exception as error:  # noqa: BLE001  the next look may do better
                logger.error("Following the adapters failed: %s.", type(error).__name__)
