"""Reader: from a message or a record to an envelope that may be run.

Everything here came from outside. Nothing is believed but what was checked: the form, the sizes,
the signature where this worker asks for one, and that an envelope is the one of its record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gptflow.client import ITEMS_PER_MESSAGE
from gptflow.config import Settings
from gptflow.envelope import Envelope, Item
from gptflow.errors import InvalidInput, MalformedMessage, UntrustedMessage
from gptflow.queue import payload
from gptflow.queue.ledger import Claim
from gptflow.queue.signing import Signer

_ITEMS = TypeAdapter(tuple[Item, ...])

Load = Callable[[str, int], str]
"""Gets the input of a job that is kept aside; see `Ledger.load_aside`."""


class Reader:
    """Reads what the settings allow.

    Args:
        load: gets an input that is kept aside.
    """

    def __init__(self, settings: Settings, load: Load) -> None:
        self._limit = settings.max_payload
        self._signer = Signer.of(settings)
        self._load = load

    def read_message(self, message: Any, signature: Any) -> payload.Packed:
        """The job of a message that was sent without a record.

        Args:
            message: an envelope: the object, or its JSON, as it was signed.

        Raises:
            InvalidInput: it is no envelope, or over the limits.
            UntrustedMessage: it is not signed, and this worker asks for that.
        """
        if isinstance(message, str):
            wire = message
            envelope = self._parse(wire)
        else:
            envelope = Envelope.from_wire(message)
            wire = payload.dumps(envelope.to_wire())
        signed = signature if isinstance(signature, str) else None
        if self._signer is not None:
            self._signer.check(wire, signed)
        if envelope.input_ref is not None:
            raise MalformedMessage("A job that was sent past the ledger must hold its input.")
        # The limits of those that are sent through it; all stays inside.
        everything = self._limit * (ITEMS_PER_MESSAGE + 1)
        packed = payload.pack(envelope, reference="", inline=everything, limit=self._limit)
        return payload.Packed(envelope=envelope, wire=wire, items=packed.items, signature=signed)

    def open_claim(self, claim: Claim) -> Envelope:
        """The envelope of a claimed job, with its input in it.

        Raises:
            InvalidInput: it is malformed, or its input is not where it says.
            UntrustedMessage: it is not signed, and this worker asks for that.
        """
        envelope = self.parse_record(claim.job_id, claim.wire, claim.signature)
        if envelope.task != claim.task:
            raise MalformedMessage("The envelope is another job's.")
        if claim.revived:
            envelope = envelope.model_copy(update={"deadline": None})
        if envelope.input_ref is None:
            return envelope
        if self._signer is not None and envelope.input_sha256 is None:
            raise UntrustedMessage("The job's signature does not cover its input.")
        most = self._limit * (1 if envelope.batch is None else ITEMS_PER_MESSAGE)
        text = self._load(envelope.id, most)
        payload.check_aside(text, envelope)
        value = _loads(text, "The input that the job refers to")
        if envelope.batch is None:
            return envelope.model_copy(update={"input": value, "input_ref": None})
        try:
            items = _ITEMS.validate_python(value)
        except ValidationError:
            raise InvalidInput("What the job refers to is not a batch's items.") from None
        return envelope.model_copy(update={"items": items, "input_ref": None})

    def parse_record(self, job_id: str, wire: str, signature: str | None) -> Envelope:
        """The envelope of a record, its input where it is."""
        if self._signer is not None:
            self._signer.check(wire, signature)
        envelope = self._parse(wire)
        if envelope.id != job_id:
            # A signed envelope must not be run again under another name.
            raise MalformedMessage("The envelope is another job's.")
        return envelope

    def _parse(self, wire: str) -> Envelope:
        return Envelope.from_wire(_loads(wire, "The envelope"))


def is_id(message: Any) -> bool:
    """Whether a message is a doorbell: a job's id, and not an envelope."""
    return isinstance(message, str) and not message.lstrip().startswith("{")


def names_of(message: Any) -> tuple[str, str]:
    """The id and the task of a message that cannot be read, as far as it has them."""
    if isinstance(message, str):
        try:
            message = json.loads(message)
        except (ValueError, RecursionError):
            message = None
    known = message if isinstance(message, dict) else {}
    return str(known.get("id")), str(known.get("task"))


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedMessage(f"{what} is not JSON.") from None
