"""FolderSource and GgufSource: models that are on this machine's disk already."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gptflow.models import gguf_file
from gptflow.models.files import check_folder, is_allowed
from gptflow.models.model import SourceKind
from gptflow.models.source import Fetched, Progress, SourceUnavailable


@dataclasses.dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder as `save_pretrained` writes it. Only the files of a model are copied.

    Copied, not linked: who edits the original later would otherwise change the store too.
    """

    path: Path

    @property
    def kind(self) -> SourceKind:
        return "path"

    @property
    def title(self) -> str:
        return f"the folder {self.path}"

    @property
    def network(self) -> bool:
        return False

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        if not self.path.is_dir():
            raise SourceUnavailable("it is not a folder")
        check_folder(self.path)  # before gigabytes are copied in vain
        files = [
            path for path in sorted(self.path.iterdir()) if is_allowed(path.name) and path.is_file()
        ]
        for done, path in enumerate(files):
            progress("copying", done, len(files))
            shutil.copyfile(path, folder / path.name)
        return Fetched(str(self.path))


@dataclasses.dataclass(frozen=True, slots=True)
class GgufSource:
    """A llama.cpp file."""

    path: Path

    @property
    def kind(self) -> SourceKind:
        return "path"

    @property
    def title(self) -> str:
        return f"the file {self.path}"

    @property
    def network(self) -> bool:
        return False

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        if not self.path.is_file():
            raise SourceUnavailable("it is not a file")
        return Fetched(str(self.path), gguf_file.convert(self.path, folder, progress))
