"""A conversation as the rest of the task sees it: masked, its language settled."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Self

from gptflow_customer_service import language
from gptflow_customer_service.knowledge import Locale
from gptflow_customer_service.personal_data import mask, unmask_words
from gptflow_customer_service.schema import Conversation


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """What the user wrote, personal data masked, and the language to reply to it in.

    Attributes:
        plain: the text without the masks, which are nobody's words.
        after_agent: a person of the company spoke since the user's message before.
    """

    text: str
    plain: str
    locale: Locale
    after_agent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """The user's messages, the oldest first, and how much personal data they held, by kind."""

    messages: tuple[Message, ...]
    pii: Mapping[str, int]

    @classmethod
    def of(cls, conversation: Conversation) -> Self:
        messages: list[Message] = []
        pii: Counter[str] = Counter()
        locale: Locale = "en"
        after_agent = False
        for turn in conversation.turns:
            if turn.role == "user":
                text, counts = mask(turn.text)
                plain = unmask_words(text)
                locale = language.settle(plain, conversation.locale, locale)
                messages.append(Message(text, plain, locale, after_agent))
                pii.update(counts)
            after_agent = turn.role == "agent" or (after_agent and turn.role != "user")
        return cls(tuple(messages), dict(pii))

    @property
    def last(self) -> Message:
        """The message to reply to."""
        return self.messages[-1]
