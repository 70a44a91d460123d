"""ModelStore: the models on this machine's disk.

A model is built aside and renamed into place when it is complete (see `shelf`), so that whatever
has a model's name is whole. Nothing here needs torch, and only `pull` asks the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from gptflow.errors import LicenceNotAccepted, ModelCorrupt, ModelError, ModelNotFound
from gptflow.models import files, manifest, name
from gptflow.models.catalogue import CATALOGUE, Catalogue
from gptflow.models.hub import HubSource
from gptflow.models.licence import Licence
from gptflow.models.local import FolderSource, GgufSource
from gptflow.models.model import Model
from gptflow.models.shelf import Shelf
from gptflow.models.source import Progress, Source, SourceUnavailable
from gptflow.suggestion import did_you_mean


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


class ModelStore:
    """Pulls, finds and verifies models.

    Args:
        cache_dir: `Settings.cache_dir`; the models lie in its folder `models`.
        offline: `Settings.offline`; never ask the network.
        accepted: `Settings.accept_licences`; the licences that the user has agreed to.
        catalogue: the models known by name.
    """

    def __init__(
        self,
        cache_dir: Path,
        offline: bool = False,
        *,
        accepted: Collection[str] = (),
        catalogue: Catalogue = CATALOGUE,
    ) -> None:
        self.folder = cache_dir / "models"
        self.offline = offline
        self._accepted = accepted
        self._catalogue = catalogue
        self._shelf = Shelf(self.folder)

    def find(self, reference: str) -> Model:
        """The model of this name, hub id or path, without asking the network.

        The sizes of its files are checked, not their content; `verify` does that. A folder
        outside the store is used where it lies, and read once to hash its weights.

        Raises:
            ModelNotFound: it was not pulled.
            ModelCorrupt: a file is missing or malformed or has another size than when pulled.
            UnsupportedModel: a folder outside the store is not one that can be served.
        """
        known = self._known(reference) in self._catalogue
        if known or self._holds(reference) or not name.is_path(reference):
            folder = self.folder / self._name(reference)
            if not self._holds(folder.name):
                raise self._not_found(reference)
            return self._read(folder)
        path = Path(reference).expanduser().resolve()
        if path.is_dir():
            return self._read(path) if self._contains(path) else _in_place(path)
        # A converted file is in the store under its own name.
        own = name.make_name(path.stem)
        if self._holds(own) and manifest.read(self.folder / own).origin == str(path):
            return self._read(self.folder / own)
        raise self._not_found(reference)

    def ensure(self, reference: str, *, progress: Progress = _silent) -> Model:
        """`find`, or else `pull`.

        Raises:
            ModelError: as these two do.
        """
        with contextlib.suppress(ModelNotFound):
            return self.find(reference)
        return self.pull(reference, progress=progress)

    def list(self) -> list[Model]:
        """The models in the store, by name. Those that `find` would refuse are left out."""
        models = []
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self.folder.iterdir()):
                if name.is_name(folder.name) and folder.is_dir():
                    with contextlib.suppress(ModelCorrupt):
                        models.append(self._read(folder))
        return models

    def verify(self, reference: str) -> Model:
        """`find`, and read every byte to compare it with what was pulled.

        Raises:
            ModelNotFound: it was not pulled.
            ModelCorrupt: a file was altered, added or removed; the message names it.
        """
        model = self.find(reference)
        if self._contains(model.path):
            manifest.check_hashes(model.path, manifest.read(model.path))
        files.check_folder(model.path)
        return model

    def pull(self, reference: str, *, progress: Progress = _silent) -> Model:
        """Get a model into the store: one known by name, a hub id, a folder or a GGUF file.

        A model that is there and intact is returned as it is; an altered one is pulled afresh.
        A folder or file is read again, and replaces what it gave before. When another process
        pulls the same model, this one waits for it.

        Args:
            reference: the name, hub id or path.
            progress: called with a stage, how much is done and of how much (None: not known).
                It may be called from another thread.

        Raises:
            ModelNotFound: no source has it; the message says what was tried.
            ModelCorrupt: a source gave something else than it should.
            UnsupportedModel: it has no safetensors weights, or demands code of its own.
            LicenceNotAccepted: it has terms that must be agreed to first.
            MissingDependency: a package needed to convert it is not installed.
            ModelError: a folder's name is that of a model from elsewhere.
        """
        own, sources, licence = self._resolve(reference)
        target = self.folder / own
        with self._shelf.lock(own, progress):
            self._shelf.sweep(own)
            if kept := self._kept(target, sources, progress):
                return kept
            self._check_accepted(own, licence)
            reasons = []
            for source in sources:
                if self.offline and source.network:
                    reasons.append(f"{source.title}: offline")
                    continue
                try:
                    return self._build(own, source, licence, progress)
                except SourceUnavailable as error:
                    reasons.append(f"{source.title}: {error}")
        raise ModelNotFound(
            f"The model {reference!r} cannot be had. Tried {'; '.join(reasons) or 'nothing'}.",
            hint="With its files on this machine, run `gptflow models pull PATH`.",
        )

    def _check_accepted(self, own: str, licence: Licence | None) -> None:
        if licence is None or not licence.must_be_accepted or licence.id in self._accepted:
            return
        raise LicenceNotAccepted(
            f"{own} is provided under the {licence.title}, found at {licence.url}; "
            "they must be accepted before it is downloaded.",
            hint="Read them. If you agree, run "
            f"`gptflow models pull {own} --accept-licence {licence.id}`, "
            f"or set GPTFLOW_ACCEPT_LICENCES={licence.id}.",
        )

    def _resolve(self, reference: str) -> tuple[str, tuple[Source, ...], Licence | None]:
        """What a reference means: its name in the store, where to ask, its licence if known."""
        if entry := self._catalogue.get(self._known(reference)):
            return entry.name, entry.sources, entry.licence
        if name.is_path(reference):
            path = Path(reference).expanduser().resolve()
            gguf = path.suffix.lower() == ".gguf"
            own = name.make_name(path.stem if gguf else path.name)
            if own in self._catalogue:
                raise ModelError(
                    f"{path} would be called {own!r}, which is the name of a known model.",
                    hint=f"Rename it, or use it where it is: `GPTFLOW_MODEL={path}`.",
                )
            return own, (GgufSource(path) if gguf else FolderSource(path),), None
        if name.is_hub_id(reference):
            return name.make_name(reference), (HubSource(reference),), None
        name.check_name(reference)
        raise ModelNotFound(
            f"There is no known model {reference!r}; known are {', '.join(self._catalogue)}.",
            hint=did_you_mean(reference, self._names())
            or "Run `gptflow models pull ORGANISATION/NAME` or `gptflow models pull PATH`.",
        )

    def _names(self) -> set[str]:
        """What can be asked for by name: what is known, and what is in the store."""
        return {*self._catalogue, *(model.name for model in self.list())}

    def _not_found(self, reference: str) -> ModelNotFound:
        hint = None
        if self._known(reference) not in self._catalogue:
            hint = did_you_mean(reference, self._names())
        return ModelNotFound(
            f"The model {reference!r} is not in the store.",
            hint=hint or f"Run `gptflow models pull {reference}`.",
        )

    def _known(self, reference: str) -> str:
        """The catalogue's name for a hub id that it knows; otherwise the reference itself."""
        for entry in self._catalogue.values():
            ids = [source.hub_id for source in entry.sources if isinstance(source, HubSource)]
            if reference.lower() in map(str.lower, ids):
                return entry.name
        return reference

    def _name(self, reference: str) -> str:
        known = self._known(reference)
        return name.make_name(known) if name.is_hub_id(known) else name.check_name(known)

    def _holds(self, text: str) -> bool:
        return name.is_name(text) and (self.folder / text / manifest.FILE_NAME).is_file()

    def _contains(self, path: Path) -> bool:
        return path.resolve().parent == self.folder.resolve()

    def _read(self, folder: Path) -> Model:
        record = manifest.read(folder)
        manifest.check_sizes(folder, record)
        return manifest.describe(folder, record)

    def _kept(self, folder: Path, sources: tuple[Source, ...], progress: Progress) -> Model | None:
        """The model that is there already, if it is intact and need not be read again."""
        if not folder.exists():
            return None
        if all(source.kind == "path" for source in sources):
            with contextlib.suppress(ModelCorrupt):
                record = manifest.read(folder)
                if record.source != "path" or record.origin != str(getattr(sources[0], "path", "")):
                    raise ModelError(
                        f"The store has another model {folder.name!r}, from {record.origin}.",
                        hint="Rename the folder that you pull, or set GPTFLOW_MODEL to its path.",
                    )
            return None
        progress("checking", 0, None)
        try:
            manifest.check_hashes(folder, manifest.read(folder))
            files.check_folder(folder)
            return self._read(folder)
        except ModelError:
            return None

    def _build(
        self, own: str, source: Source, licence: Licence | None, progress: Progress
    ) -> Model:
        with self._shelf.build(own) as folder:
            fetched = source.fetch(folder, progress)
            progress("checking", 0, None)
            files.check_folder(folder)
            record = manifest.create(folder, own, source.kind, fetched, licence)
        return manifest.describe(self.folder / own, record)


def _in_place(path: Path) -> Model:
    config = files.check_folder(path)
    own = [file for file in path.iterdir() if files.is_allowed(file.name) and file.is_file()]
    architecture, context = manifest.read_facts(config)
    hashes = {file.name: manifest.hash_file(file) for file in own if files.is_weights(file.name)}
    return Model(
        name=name.make_name(path.name),
        path=path,
        sha256=manifest.combine(hashes),
        source="path",
        size_bytes=sum(file.stat().st_size for file in own),
        architecture=architecture,
        context=context,
        licence="unknown",
    )
