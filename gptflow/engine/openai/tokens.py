"""Tokens: prompts as a server is to see them.

Best is a vocabulary of one's own (the model's `tokenizer.json`): prompts then travel as token
ids, exactly those of the engine that holds its model itself, and what users wrote can hold no
control token. Without one, the server writes chats in the model's format and counts tokens; it
takes control tokens in anybody's text for what they are, so that those in users' text are broken
up with a zero-width space.
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptflow.engine.openai import dialect as dialects
from gptflow.engine.openai.dialect import Dialect
from gptflow.engine.openai.transport import Transport
from gptflow.engine.openai.wire import CHAT, COMPLETIONS, Route
from gptflow.errors import EmptyInput, EngineError, UnsupportedHead
from gptflow.prompt import Message, RenderedPrompt
from gptflow.request import JobClass

if TYPE_CHECKING:
    from gptflow.engine.openai.capabilities import Server
    from gptflow.engine.tokenizer import Vocabulary

_CONTROL = re.compile(
    r"<(?=\|[^|<>\n]{1,64}\|>|｜[^｜<>\n]{1,64}｜>|/?s>|(?:bos|eos|pad|unk|mask|cls|sep)>"
    r"|(?:start|end)_of_(?:turn|image|audio)>|/?(?:think|tool_call|tool_response|tools)>"
    r"|</?SYS>>)"
    r"|\[(?=/?[A-Z]+(?:_[A-Z]+)*\])"
)
"""Where a control token of one of the usual formats begins."""

_BREAK = "\u200b"
_REMEMBERED = 4096

NO_TOKENIZER = "Set GPTFLOW_OPENAI_TOKENIZER to a folder with the model's tokenizer.json."


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """A prompt on its way.

    Attributes:
        fields: of the request's body that carry it.
        tokens: how many it has, if that is known.
        stop: strings that end an answer to it, besides the request's own.
    """

    route: Route
    fields: Mapping[str, Any]
    tokens: int | None = None
    stop: tuple[str, ...] = ()


class Tokens:
    """Encodes prompts for one server.

    Args:
        vocabulary: the model's own, if it is at hand.
    """

    def __init__(self, transport: Transport, server: Server, vocabulary: Vocabulary | None) -> None:
        self._transport = transport
        self._server = server
        self._vocabulary = vocabulary
        self._continuations: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer, where a vocabulary tells."""
        return frozenset() if self._vocabulary is None else self._vocabulary.eos_ids

    def payload(self, prompt: RenderedPrompt | tuple[int, ...]) -> Payload:
        """How a prompt to be continued is sent.

        Raises:
            UnsupportedHead: the server does not take such a prompt.
            EmptyInput: there is nothing in it.
        """
        can = self._server.capabilities
        if not isinstance(prompt, RenderedPrompt):
            can.require("token_prompts", what="completions of token ids")
            return self._as_ids(prompt)
        if can.token_prompts and (vocabulary := self._own(prompt)):
            stop = vocabulary.chat.stop if prompt.is_chat else ()
            return self._as_ids(vocabulary.encode(prompt), stop)
        if prompt.is_chat:
            can.require("chat", what="chats", hint=NO_TOKENIZER)
            return Payload(CHAT, self._chat(prompt))
        can.require("completions", what="completions of plain text")
        return Payload(COMPLETIONS, {"prompt": plain_text(prompt)})

    def knows(self, prompt: RenderedPrompt) -> bool:
        """Whether `ids` tells without asking the server."""
        return self._own(prompt) is not None

    def own_ids(self, prompt: RenderedPrompt) -> tuple[int, ...]:
        """What `ids` tells where it `knows`."""
        vocabulary = self._own(prompt)
        assert vocabulary is not None
        return vocabulary.encode(prompt)

    async def ids(
        self, prompt: RenderedPrompt | tuple[int, ...], job_class: JobClass
    ) -> tuple[int, ...]:
        """Token ids of a whole prompt.

        Raises:
            UnsupportedHead: neither a vocabulary nor the server can tell.
        """
        if not isinstance(prompt, RenderedPrompt):
            return prompt
        if vocabulary := self._own(prompt):
            return vocabulary.encode(prompt)
        self._server.capabilities.require("tokenize", what="/tokenize", hint=NO_TOKENIZER)
        if not prompt.is_chat:
            return await self._tokenize(plain_text(prompt), job_class, special=True)
        fields = self._chat(prompt)
        dialect, model = self._server.dialect, self._server.model
        if dialect is dialects.VLLM:
            body = {"model": model, "add_generation_prompt": True, **fields}
            answer = await self._transport.post("/tokenize", body, job_class)
            return tuple(answer["tokens"])
        if dialect is dialects.LLAMA_CPP:
            answer = await self._transport.post("/apply-template", fields, job_class)
            return await self._tokenize(answer["prompt"], job_class, special=True)
        raise UnsupportedHead(
            f"{self._server.capabilities.server} does not list the tokens of a chat.",
            hint=NO_TOKENIZER,
        )

    async def count(self, prompt: RenderedPrompt) -> int:
        """How many tokens a prompt takes: exactly, or at most where nobody can tell."""
        if (vocabulary := self._own(prompt)) or self._server.capabilities.tokenize:
            try:
                return len(vocabulary.encode(prompt) if vocabulary else await self._count(prompt))
            except UnsupportedHead:
                pass
        return at_most(prompt)

    async def continuations(
        self, texts: Sequence[str], after: Sequence[int], job_class: JobClass
    ) -> tuple[tuple[int, ...], ...]:
        """Token ids of texts as they would go on after a prompt of the tokens `after`.

        A word in running text carries the space before it: see `Vocabulary.encode_continuation`.
        """
        tail = await self._text(tuple(after[-8:]), job_class)
        spaced = not tail or tail[-1].isspace()
        found = []
        for text in texts:
            whole = text if spaced or text[0].isspace() else f" {text}"
            if whole not in self._continuations:
                self._continuations[whole] = await self._plain(whole, job_class)
                if len(self._continuations) > _REMEMBERED:
                    self._continuations.popitem(last=False)
            found.append(self._continuations[whole])
        return tuple(found)

    def _own(self, prompt: RenderedPrompt) -> Vocabulary | None:
        """The vocabulary, unless the server knows the model's chat format and we do not."""
        vocabulary = self._vocabulary
        if vocabulary is None or not prompt.is_chat:
            return vocabulary
        known = vocabulary.chat.name != "plain" or not self._server.capabilities.chat
        return vocabulary if known else None

    def _as_ids(self, ids: tuple[int, ...], stop: tuple[str, ...] = ()) -> Payload:
        if not ids:
            raise EmptyInput("The prompt is empty.")
        return Payload(COMPLETIONS, {"prompt": list(ids)}, len(ids), stop)

    def _chat(self, prompt: RenderedPrompt) -> dict[str, Any]:
        messages = [m for m in prompt.messages if m.role != "assistant" or m.segments]
        fields: dict[str, Any] = {
            "messages": [{"role": m.role or "user", "content": _safe(m)} for m in messages]
        }
        if messages and messages[-1].role == "assistant":
            if self._server.dialect.continues is None:
                raise UnsupportedHead(
                    f"{self._server.capabilities.server} cannot go on with an answer that the "
                    "prompt has begun.",
                    hint=NO_TOKENIZER,
                )
            fields |= self._server.dialect.continues
        return fields

    async def _count(self, prompt: RenderedPrompt) -> Sequence[int]:
        return await self.ids(prompt, "interactive")

    async def _plain(self, text: str, job_class: JobClass) -> tuple[int, ...]:
        if self._vocabulary is not None:
            return tuple(self._vocabulary.encode_text(text))
        return await self._tokenize(text, job_class)

    async def _text(self, ids: tuple[int, ...], job_class: JobClass) -> str:
        if self._vocabulary is not None:
            # Control tokens are left out, so that a prompt of nothing else ends in no text.
            return self._vocabulary.decode(ids)
        body = {"model": self._server.model, "tokens": list(ids)}
        answer = await self._transport.post("/detokenize", body, job_class)
        return str(answer.get("prompt", answer.get("content", answer.get("text", ""))))

    async def _tokenize(
        self, text: str, job_class: JobClass, *, special: bool = False
    ) -> tuple[int, ...]:
        return await tokenize(
            self._transport,
            self._server.dialect,
            self._server.model,
            text,
            special=special,
            job_class=job_class,
        )


async def tokenize(
    transport: Transport,
    dialect: Dialect,
    model: str,
    text: str,
    *,
    special: bool = False,
    job_class: JobClass = "interactive",
) -> tuple[int, ...]:
    """A server's token ids of a text; `special` lets it begin with the model's begin token."""
    body: dict[str, Any]
    if dialect is dialects.LLAMA_CPP:
        body = {"content": text, "add_special": special, "parse_special": special}
    else:
        body = {"model": model, "prompt": text, "add_special_tokens": special}
    answer = await transport.post("/tokenize", body, job_class)
    ids = answer["tokens"]
    if not all(isinstance(id_, int) for id_ in ids):
        raise EngineError("The model server's /tokenize does not list token ids.")
    return tuple(ids)


def plain_text(prompt: RenderedPrompt) -> str:
    """The text of a prompt that is no chat, safe to be sent.

    Raises:
        EmptyInput: there is none.
    """
    text = _safe(prompt.messages[0])
    if not text:
        raise EmptyInput("The prompt is empty.")
    return text


def at_most(prompt: RenderedPrompt) -> int:
    """An upper bound of a prompt's tokens: no token is shorter than a byte."""
    return sum(len(message.text.encode()) + 16 for message in prompt.messages) + 16


def _safe(message: Message) -> str:
    """A turn's text, in which only the template's author can have written a control token."""
    return "".join(
        s.text if s.trusted else _CONTROL.sub(lambda m: m[0] + _BREAK, s.text)
        for s in message.segments
    )
