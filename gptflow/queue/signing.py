"""Signing: an envelope's HMAC, so that whoever can write to Redis cannot make up jobs.

The signature is of the envelope's exact bytes as they travel. What an envelope refers to is
covered by the digest in it, and its id by the ledger: the same job is not run twice while its
record is kept.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Self

from gptflow.config import Settings
from gptflow.errors import UntrustedMessage

SETTING = "GPTFLOW_ALLOW_CHAINS"
"""What lets jobs that are not signed be followed by others."""

_SCHEME = "v1="


def chains_allowed(settings: Settings) -> bool:
    """Whether what follows a job is enqueued: where all jobs are signed, or it was allowed."""
    return settings.allow_chains or settings.signing_key is not None


class Signer:
    """Signs with one key, and accepts the signatures of some.

    Args:
        key: the secret.
        previous: one that is still accepted, while callers go over to the new one.
    """

    def __init__(self, key: str, previous: str | None = None) -> None:
        self._keys = [name.encode() for name in (key, previous) if name is not None]

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The signer of the settings; None where jobs are not signed."""
        key, previous = settings.signing_key, settings.signing_key_previous
        if key is None:
            return None
        return cls(key.get_secret_value(), previous.get_secret_value() if previous else None)

    def sign(self, wire: str) -> str:
        """The signature of an envelope: `v1=` and the HMAC-SHA256 in hexadecimal digits."""
        return _digest(self._keys[0], wire)

    def check(self, wire: str, signature: str | None) -> None:
        """Check an envelope that came from outside.

        Raises:
            UntrustedMessage: it is not signed, or not with a key that is known here.
        """
        if not signature:
            raise UntrustedMessage(
                "The job is not signed, and this worker runs signed ones only.",
                hint="Set GPTFLOW_SIGNING_KEY where jobs are sent.",
            )
        # Every key is tried in full: how long it takes tells nothing.
        matches = [
            hmac.compare_digest(_digest(key, wire).encode(), signature.encode())
            for key in self._keys
        ]
        if not any(matches):
            raise UntrustedMessage(
                "The job's signature is not that of its envelope.",
                hint="GPTFLOW_SIGNING_KEY must be the same where jobs are sent and run.",
            )


def _digest(key: bytes, wire: str) -> str:
    return (
        _SCHEME + hmac.new(key, wire.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    )
