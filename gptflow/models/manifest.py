"""Manifest: the record, kept beside a model's files, of where they came from and what they were."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gptflow import __version__, validation
from gptflow.errors import ModelCorrupt
from gptflow.models.files import CONFIG, is_weights, read_json
from gptflow.models.licence import Licence
from gptflow.models.model import Model, SourceKind
from gptflow.models.source import Fetched

FILE_NAME = "manifest.json"
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


class FileRecord(BaseModel):
    """One file as it was when the model was pulled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds. It is written last: a folder without one is not a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    source: SourceKind
    origin: str
    licence: str
    terms: str | None = None
    created: datetime
    gptflow: str
    files: dict[str, FileRecord]

    @property
    def weights_sha256(self) -> str:
        """See `Model.sha256`."""
        return combine({name: record.sha256 for name, record in self.files.items()})


def create(
    folder: Path, name: str, source: SourceKind, fetched: Fetched, licence: Licence | None
) -> Manifest:
    """Hash the files in `folder` and write its manifest.

    Args:
        licence: of a known model; of others it is what the source says.
    """
    manifest = Manifest(
        name=name,
        source=source,
        origin=fetched.origin,
        licence=licence.id if licence else fetched.licence or "unknown",
        terms=licence.url if licence else None,
        created=datetime.now(UTC),
        gptflow=__version__,
        files={
            path.name: FileRecord(size=path.stat().st_size, sha256=hash_file(path))
            for path in sorted(folder.iterdir())
        },
    )
    text = manifest.model_dump_json(indent=2) + "\n"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return manifest


def read(folder: Path) -> Manifest:
    """Read a model's manifest.

    Raises:
        ModelCorrupt: it is missing or malformed.
    """
    record = read_json(folder / FILE_NAME)
    try:
        return Manifest.model_validate(record)
    except ValidationError as error:
        told = validation.explain(error, record, whole="the manifest")
        raise ModelCorrupt(
            f"{folder / FILE_NAME} is malformed: {told}.", hint=_again(folder)
        ) from None


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there with its size. Cheap: nothing is read.

    Times of change are not compared: restoring or copying a cache changes them.

    Raises:
        ModelCorrupt: a file is missing or has another size.
    """
    for name, record in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise ModelCorrupt(f"{folder / name} is missing.", hint=_again(folder)) from None
        if size != record.size:
            raise ModelCorrupt(
                f"{folder / name} has {size} bytes instead of {record.size}.", hint=_again(folder)
            )


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Check that the files are byte for byte what was pulled, and that nothing was added.

    Raises:
        ModelCorrupt: a file was altered, added or removed.
    """
    check_sizes(folder, manifest)
    if added := sorted({path.name for path in folder.iterdir()} - {*manifest.files, FILE_NAME}):
        raise ModelCorrupt(
            f"{folder / added[0]} does not belong to the model.", hint=_again(folder)
        )
    for name, record in manifest.files.items():
        if hash_file(folder / name) != record.sha256:
            raise ModelCorrupt(
                f"{folder / name} has been altered: its SHA-256 differs.", hint=_again(folder)
            )


def describe(folder: Path, manifest: Manifest) -> Model:
    """Make the `Model` of a folder and its manifest.

    Raises:
        ModelCorrupt: `config.json` cannot be read.
    """
    architecture, context = read_facts(read_json(folder / CONFIG))
    return Model(
        name=manifest.name,
        path=folder,
        sha256=manifest.weights_sha256,
        source=manifest.source,
        size_bytes=sum(record.size for record in manifest.files.values()),
        architecture=architecture,
        context=context,
        licence=manifest.licence,
        terms=manifest.terms,
    )


def read_facts(config: dict[str, Any]) -> tuple[str, int]:
    """The architecture and the context length that a `config.json` states (0: none)."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else config.get("model_type")
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    stated = (place.get(key) for place in places for key in _CONTEXT_KEYS)
    context = next((value for value in stated if type(value) is int and value > 0), 0)
    return str(architecture or "unknown"), context


def combine(hashes: dict[str, str]) -> str:
    """One SHA-256 for all weight files; see `Model.sha256`."""
    weights = sorted((name, value) for name, value in hashes.items() if is_weights(name))
    if len(weights) == 1:
        return weights[0][1]
    lines = "".join(f"{value}  {name}\n" for name, value in weights)
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _again(folder: Path) -> str:
    return f"Run `gptflow models pull {folder.name}`."
