"""HubSource: a model on the Hugging Face hub, if it answers quickly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptflow.errors import ModelCorrupt, UnsupportedModel
from gptflow.models.download import watch_folder
from gptflow.models.files import is_allowed, is_weights
from gptflow.models.manifest import hash_file
from gptflow.models.model import SourceKind
from gptflow.models.source import Fetched, Progress, SourceUnavailable

_PROBE_SECONDS = 3.0
_API_SECONDS = 5.0
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclasses.dataclass(frozen=True, slots=True)
class HubSource:
    """The files of a hub repository that belong to a model, and no others.

    Attributes:
        hub_id: `organisation/name`.
        revision: a branch, tag or commit; a branch is resolved to its commit first.
        endpoint: by default the one that huggingface_hub uses, which `HF_ENDPOINT` sets.
    """

    hub_id: str
    revision: str = "main"
    endpoint: str | None = None

    @property
    def kind(self) -> SourceKind:
        return "hub"

    @property
    def title(self) -> str:
        return f"the Hugging Face hub ({self.hub_id})"

    @property
    def network(self) -> bool:
        return True

    def fetch(self, folder: Path, progress: Progress) -> Fetched:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            raise SourceUnavailable("HF_HUB_OFFLINE is set")
        try:
            import huggingface_hub
            from huggingface_hub import constants
        except ImportError:
            raise SourceUnavailable("the package huggingface_hub is not installed") from None
        endpoint = self.endpoint or constants.ENDPOINT
        progress("asking the hub", 0, None)
        # The client retries for minutes where nothing answers; this says so in seconds.
        _probe(endpoint)
        with _quiet(huggingface_hub), _unavailable():
            info = huggingface_hub.HfApi(endpoint=endpoint).model_info(
                self.hub_id, revision=self.revision, timeout=_API_SECONDS, files_metadata=True
            )
            files = {
                file.rfilename: file for file in info.siblings or () if is_allowed(file.rfilename)
            }
            if not any(map(is_weights, files)):
                raise UnsupportedModel(
                    f"{self.hub_id} has no safetensors weights on the hub.",
                    hint="Convert it to safetensors, then `gptflow models pull PATH`.",
                )
            total = sum(file.size or 0 for file in files.values())
            with watch_folder(folder, total, progress):
                huggingface_hub.snapshot_download(
                    self.hub_id,
                    revision=info.sha,
                    local_dir=folder,
                    allow_patterns=sorted(files),
                    etag_timeout=_API_SECONDS,
                    endpoint=endpoint,
                )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own records
        for name, file in files.items():
            if file.lfs is not None and hash_file(folder / name) != file.lfs.sha256:
                raise ModelCorrupt(
                    f"{name} of {self.hub_id} is not what the hub says: its SHA-256 differs.",
                    hint=f"Run `gptflow models pull {self.hub_id}` again.",
                )
        licence = getattr(info.card_data, "license", None)
        return Fetched(f"{self.hub_id}@{info.sha}", licence if isinstance(licence, str) else None)


def _probe(endpoint: str) -> None:
    """Raise SourceUnavailable unless the endpoint answers soon, whatever it answers."""
    result: list[str] = []

    def ask() -> None:
        if not endpoint.startswith(("https://", "http://")):
            result.append(f"its endpoint {endpoint!r} is not a web address")
            return
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 (checked above)
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310
                result.append("")
        except urllib.error.HTTPError as error:
            error.close()
            result.append(f"it answers {error.code}" if error.code >= 500 else "")
        except (OSError, ValueError) as error:
            result.append(f"it does not answer ({getattr(error, 'reason', error)})")

    # In a thread, because no timeout bounds the look-up of a name.
    thread = threading.Thread(target=ask, daemon=True, name="gptflow-hub-probe")
    thread.start()
    thread.join(_PROBE_SECONDS + 1)
    if problem := next(iter(result), f"it does not answer within {_PROBE_SECONDS:.0f} s"):
        raise SourceUnavailable(problem)


@contextlib.contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Hold back the client's own progress bars: ours are shown instead."""
    shown = not hub.utils.are_progress_bars_disabled()
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            hub.utils.enable_progress_bars()


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Turn the client's many errors into ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise SourceUnavailable(
            "its terms must be accepted on the hub first, and HF_TOKEN be set"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceUnavailable("it has no such model, or the model is private") from None
    except errors.RevisionNotFoundError:
        raise SourceUnavailable("it has no such revision of the model") from None
    except _client_errors(errors) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceUnavailable(f"the download failed ({first})") from None


def _client_errors(errors: Any) -> tuple[type[Exception], ...]:
    # The client raises its HTTP library's errors as they are, and which library that is depends
    # on its version; its own HTTP error is derived from theirs. Its Rust part raises RuntimeError.
    return (OSError, ValueError, RuntimeError, *errors.HfHubHTTPError.__bases__)
