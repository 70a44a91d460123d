"""Payloads: checks that an input is JSON and not too large, and moves large ones aside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from gptflow.envelope import Envelope
from gptflow.errors import InvalidInput, MalformedMessage
from gptflow.queue.signing import Signer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An envelope that is ready to be sent.

    Attributes:
        envelope: with `input_ref` in place of an input that is kept aside.
        wire: the envelope as JSON.
        aside: what `input_ref` refers to, as JSON; None for an input inside the envelope.
        items: how many rows of a batch it carries; None for a single job.
        signature: of `wire`, where jobs are signed.
    """

    envelope: Envelope
    wire: str
    aside: str | None = None
    items: int | None = None
    signature: str | None = None


def pack(
    envelope: Envelope, *, reference: str, inline: int, limit: int, signer: Signer | None = None
) -> Packed:
    """Make an envelope ready to be sent.

    Args:
        reference: the key under which a large input will be kept.
        inline: bytes above which an input is kept aside.
        limit: bytes of one input at most; each item of a batch is an input.
        signer: signs it, where jobs are signed.

    Raises:
        InvalidInput: an input is not JSON, or is over the limit.
    """
    if envelope.items is None:
        text = dumps(envelope.input, what=f"The input of task {envelope.task!r}")
        _check_size(text, limit, f"The input of task {envelope.task!r}")
    else:
        for item in envelope.items:
            what = f"Row {item.index} for task {envelope.task!r}"
            _check_size(dumps(item.input, what=what), limit, what)
        items = [item.model_dump(mode="json") for item in envelope.items]
        text = dumps(items, what=f"The batch for task {envelope.task!r}")
    aside, count = None, None if envelope.items is None else len(envelope.items)
    if envelope.input_ref is None and _size(text) > inline:
        aside = text
        envelope = envelope.model_copy(
            update={
                "input": None,
                "items": None,
                "input_ref": reference,
                "input_sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        )
    if envelope.then:
        following = dumps(envelope.to_wire()["then"], what="What follows the job")
        _check_size(following, limit, "What follows the job")
    wire = dumps(envelope.to_wire())
    signature = None if signer is None else signer.sign(wire)
    return Packed(envelope=envelope, wire=wire, aside=aside, items=count, signature=signature)


def check_aside(text: str, envelope: Envelope) -> None:
    """Check an input that was kept aside.

    Raises:
        MalformedMessage: it is not the one that the envelope was made for.
    """
    given = envelope.input_sha256
    if given is not None and hashlib.sha256(text.encode()).hexdigest() != given:
        raise MalformedMessage("The input that the job refers to was changed after it was sent.")


def dumps(value: Any, *, what: str = "The value") -> str:
    """The value as compact JSON.

    Raises:
        InvalidInput: it is not JSON; NaN and infinity are not either.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}.") from None
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate can only travel as an escape
        return json.dumps(value, separators=(",", ":"))
    return text


def _size(text: str) -> int:
    return len(text.encode())


def _check_size(text: str, limit: int, what: str) -> None:
    if (size := _size(text)) > limit:
        raise InvalidInput(
            f"{what} takes {size} bytes; {limit} are allowed.",
            hint="Send less, or raise GPTFLOW_MAX_PAYLOAD.",
        )
