"""Chat formats: how a model's training data marked whose turn it is.

The formats are written out here by name. A model folder may bring a Jinja2 template of its
own, but that is a program from whoever made the folder, and it cannot tell the turns' text
from the control tokens around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence

from gptflow.prompt import Message, Role, Segment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """One way of writing turns.

    Attributes:
        opens: what stands before a turn, by role.
        closes: what stands after a turn, by role.
        answer: what opens the assistant's turn that the model is to write.
        end: the token that ends a turn, if the format has one.
        stop: strings that end an answer where there is no such token.
        folds_system: the format has no system turn; its text begins the first user turn.
    """

    name: str
    opens: Mapping[Role, str]
    closes: Mapping[Role, str]
    answer: str
    end: str | None = None
    stop: tuple[str, ...] = ()
    folds_system: bool = False

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        """Write the turns out. The last one is left open for the model to go on.

        A last `assistant` message is the start of the answer; without one, an empty
        assistant turn is opened.
        """
        if self.folds_system:
            messages = _fold_system(messages)
        segments: list[Segment] = []
        for message in messages[:-1]:
            segments += self._turn(message)
        last = messages[-1]
        if last.role == "assistant" and last.segments:
            return [*segments, Segment(self.opens["assistant"], True), *last.segments]
        if last.role != "assistant":
            segments += self._turn(last)
        return [*segments, Segment(self.answer, True)]

    def _turn(self, message: Message) -> list[Segment]:
        role: Role = message.role or "user"
        return [
            Segment(self.opens[role], True),
            *message.segments,
            Segment(self.closes[role], True),
        ]


def _marked(
    name: str, open_: str, close: str, end: str, assistant: str = "assistant"
) -> ChatFormat:
    roles: dict[Role, str] = {"system": "system", "user": "user", "assistant": assistant}
    opens = {role: open_.format(word) for role, word in roles.items()}
    return ChatFormat(
        name=name,
        opens=opens,
        closes=dict.fromkeys(roles, close),
        answer=opens["assistant"],
        end=end,
        folds_system=assistant == "model",
    )


CHATML = _marked("chatml", "<|im_start|>{}\n", "<|im_end|>\n", "<|im_end|>")
LLAMA3 = _marked("llama3", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>")
GEMMA = _marked("gemma", "<start_of_turn>{}\n", "<end_of_turn>\n", "<end_of_turn>", "model")
PLAIN = ChatFormat(
    name="plain",
    opens={"system": "", "user": "User: ", "assistant": "Assistant: "},
    closes={"system": "\n\n", "user": "\n", "assistant": "\n"},
    # No space at the end: most vocabularies put it at the beginning of the next word.
    answer="Assistant:",
    stop=("\nUser:",),
)


def detect(vocabulary: Container[str]) -> ChatFormat:
    """The format whose control tokens the vocabulary has; `PLAIN` when it has none."""
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return CHATML
    if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
        return LLAMA3
    if "<start_of_turn>" in vocabulary and "<end_of_turn>" in vocabulary:
        return GEMMA
    return PLAIN


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """Put what the system turns say at the start of the first user turn."""
    system: list[Segment] = []
    rest: list[Message] = []
    for message in messages:
        if message.role == "system":
            system += [*message.segments, Segment("\n\n", True)]
        else:
            rest.append(message)
    if not system:
        return rest
    first = next((i for i, message in enumerate(rest) if message.role == "user"), None)
    if first is None:
        return [Message("user", tuple(system[:-1])), *rest]
    rest[first] = Message("user", (*system, *rest[first].segments))
    return rest
