"""Licence: what a model may be used for, and whether somebody must agree to it first."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Licence:
    """The terms that a known model comes with.

    Attributes:
        id: its SPDX identifier, or the word that model hubs use.
        title: what its authors call it.
        url: where to read it.
        must_be_accepted: the model is not pulled before its user has agreed.
    """

    id: str
    title: str
    url: str
    must_be_accepted: bool = False


APACHE_2 = Licence(
    "apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"
)
GEMMA = Licence(
    "gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms", must_be_accepted=True
)
