"""Names: what a model is called in the store, and what a reference given by a user means."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gptflow.errors import ModelNotFound

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MAX_LENGTH = 64


def is_name(text: str) -> bool:
    """Whether `text` can be a folder's name in the store: it never leads out of it."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def check_name(text: str) -> str:
    """Return `text` if it is a name.

    Raises:
        ModelNotFound: it is not, so that no model can be called that.
    """
    if not is_name(text):
        raise ModelNotFound(
            f"{text!r} cannot be the name of a model in the store.",
            hint="Names have up to 64 of a-z, 0-9, '.', '_' and '-'; "
            "`gptflow models list` shows them.",
        )
    return text


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `organisation/name` of the model hub."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def is_path(text: str) -> bool:
    """Whether `text` means a file or folder rather than a name or a hub id."""
    if not text:
        return False
    return text.startswith(("/", "./", "../", "~")) or text in {".", ".."} or Path(text).exists()


def make_name(text: str) -> str:
    """Derive a name from a hub id or a folder's name.

    What is not allowed becomes a hyphen; what is too long is cut and keeps a checksum, so that
    two long names stay apart.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower().replace("/", "--"))
    name = re.sub(r"\.{2,}", ".", name).strip("._-")
    if len(name) > _MAX_LENGTH or not name:
        name = (
            f"{name[:48].strip('._-') or 'model'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        )
    return name
