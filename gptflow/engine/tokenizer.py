"""The vocabulary: prompts to token ids and back.

Control tokens (`<|im_start|>` and the like) are recognised in trusted text only. Everything
else, what users wrote and the template's plain text around it, is encoded together, so that
tokens merge across the border as they would in any text, but with control tokens taken as the
plain characters they are made of.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from gptflow.engine.chat import PLAIN, detect
from gptflow.errors import ModelCorrupt, UnsupportedModel
from gptflow.prompt import RenderedPrompt, Segment

_HTML = (
    "a|b|blockquote|body|caption|code|div|em|footer|h[1-6]|html|i|iframe|img|li|s|span|strong|"
    "sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul"
)

# Some vocabularies hold markers such as `<think>` or `[INST]` as ordinary added tokens. Gemma's
# holds the elements of HTML too, which are text: they may be read and written.
_MARKER = re.compile(rf"(?!</?(?:{_HTML})>)<[^\s<>]+>|\[[^\s\[\]]+\]")


_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class _Run(NamedTuple):
    """Text from character `start` on: plain, or that of one control token."""

    text: str
    start: int
    control: int | None = None


class Vocabulary:
    """A byte-pair vocabulary with its chat format and its end tokens.

    Args:
        source: the text of a `tokenizer.json`.
        bos: the token to begin every prompt with, or None.
        eos_ids: tokens that end an answer, besides the chat format's own.
        chat: the model was trained on turns. A base model's vocabulary may have their control
            tokens, but the model does not know them: its turns are written as plain text.
        name: what messages call it.

    Raises:
        ModelCorrupt: the source is not a tokenizer.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str | None = None,
        eos_ids: Iterable[int] = (),
        chat: bool = True,
        name: str = "tokenizer.json",
    ) -> None:
        try:
            spec = json.loads(source)
            for token in spec.get("added_tokens", ()):
                token["special"] |= _MARKER.fullmatch(token["content"]) is not None
            self._tokenizer = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelCorrupt(f"{name} cannot be read: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token.content: id_ for id_, token in added.items() if token.special}
        self._split = re.compile(
            "(" + "|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) + ")"
        )
        self.size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.chat = detect(self._control) if chat else PLAIN
        end = {self._control[self.chat.end]} if self.chat.end else set()
        self.eos_ids = frozenset(eos_ids) | end
        self._bos: tuple[int, ...] = () if bos is None else (self._control[bos],)
        self._prefix = functools.lru_cache(maxsize=1024)(self._encode_prefix)

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer: the chat format's own, or else the model's first."""
        if self.chat.end:
            return self._control[self.chat.end]
        return min(self.eos_ids, default=None)

    @property
    def document_end(self) -> int | None:
        """The token that parts documents in pre-training, or else the one that ends an answer."""
        known = (self._control[token] for token in _DOCUMENT_ENDS if token in self._control)
        return next(known, self.end_id)

    @property
    def json(self) -> str:
        """As a `tokenizer.json`. Written anew each time: for a large vocabulary it is large."""
        return self._tokenizer.to_str()

    @classmethod
    def from_folder(cls, folder: Path) -> Vocabulary:
        """Read `tokenizer.json` and the settings beside it from a model folder.

        Raises:
            UnsupportedModel: there is no `tokenizer.json`.
            ModelCorrupt: it does not parse.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModel(
                f"{folder} has no tokenizer.json.",
                hint="AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one.",
            )
        settings = _read_json(folder / "tokenizer_config.json")
        eos = _read_json(folder / "generation_config.json").get("eos_token_id")
        if eos is None:
            eos = _read_json(folder / "config.json").get("eos_token_id")
        source = path.read_text(encoding="utf-8")
        return cls(
            source,
            bos=_bos_token(source, settings),
            eos_ids=() if eos is None else (eos,) if isinstance(eos, int) else eos,
            chat="chat_template" in settings or (folder / "chat_template.jinja").is_file(),
            name=str(path),
        )

    def segments(self, prompt: RenderedPrompt) -> list[Segment]:
        """The prompt as the model is to see it, the turns in the model's chat format."""
        if prompt.is_chat:
            return self.chat.render(prompt.messages)
        return list(prompt.messages[0].segments)

    def encode(self, prompt: RenderedPrompt) -> tuple[int, ...]:
        """Token ids of a whole prompt."""
        return self.encode_segments(tuple(self.segments(prompt)))

    def encode_segments(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Token ids of segments that make up a prompt from its very start."""
        ids = list(self._bos)
        for run in self._runs(segments):
            ids += self.encode_text(run.text) if run.control is None else (run.control,)
        return tuple(ids)

    def encode_with_places(
        self, segments: Sequence[Segment]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """The same ids, and where each stands in the segments' joined text.

        The characters that a token covers in part, such as one byte of an emoji, count as
        its own.
        """
        ids, places = [*self._bos], [(0, 0)] * len(self._bos)
        for run in self._runs(segments):
            if run.control is not None:
                ids.append(run.control)
                places.append((run.start, run.start + len(run.text)))
            elif run.text:
                encoded = self._tokenizer.encode(run.text, add_special_tokens=False)
                ids += encoded.ids
                places += [(run.start + a, run.start + b) for a, b in encoded.offsets]
        return tuple(ids), tuple(places)

    def _runs(self, segments: Sequence[Segment]) -> Iterator[_Run]:
        """A prompt as plain text and control tokens in turn."""
        plain, start, at = "", 0, 0
        for segment in segments:
            # Splitting at a group leaves the control tokens at the odd places.
            parts = self._split.split(segment.text) if segment.trusted and self._control else None
            for i, part in enumerate(parts or (segment.text,)):
                if i % 2 == 0:
                    plain += part
                else:
                    yield _Run(plain, start)
                    yield _Run(part, at, self._control[part])
                    plain, start = "", at + len(part)
                at += len(part)
        yield _Run(plain, start)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are just characters."""
        if not text:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prefix(self, prompt: RenderedPrompt, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The leading tokens of `ids` that the template's author alone decided.

        They are the tokens of everything before the first piece of data, less the last one:
        that one may have merged with the data's first characters. Empty if the rest of the
        prompt changed them all the same, or if no token would be left to compute.
        """
        head: list[Segment] = []
        for segment in self.segments(prompt):
            if not segment.trusted:
                break
            head.append(segment)
        prefix = self._prefix(tuple(head))
        return prefix if len(prefix) < len(ids) and ids[: len(prefix)] == prefix else ()

    def _encode_prefix(self, head: tuple[Segment, ...]) -> tuple[int, ...]:
        return self.encode_segments(head)[:-1]

    def encode_continuation(self, text: str, *, after: str) -> tuple[int, ...]:
        """Token ids of `text` as it would go on after the text `after`.

        A word in running text carries the space before it. So `text` is encoded with a
        leading space, unless `after` is empty or ends in white space already.
        """
        spaced = text if not after or after[-1].isspace() or text[0].isspace() else f" {text}"
        return tuple(self.encode_text(spaced))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; control tokens are left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelCorrupt(f"{path} is not JSON: {error}.") from error
    return loaded


def _bos_token(source: str, settings: dict[str, Any]) -> str | None:
    """The begin token, if the model's own tokenizer puts one before every text."""
    bos = settings.get("bos_token")
    content: str | None = bos.get("content") if isinstance(bos, dict) else bos
    if content is None:
        return None
    adds = settings.get("add_bos_token")
    if adds is None:
        try:
            adds = content in Tokenizer.from_str(source).encode("").tokens
        except Exception:  # noqa: BLE001  `Vocabulary` reports what does not parse
            return None
    return content if adds else None
