"""Prompts: sandboxed Jinja2 templates whose output remembers who wrote what.

What the template's author wrote is *trusted*; what a variable brought in is *data*. Only
trusted text may hold a model's control tokens or open a turn: user text that says
`<|im_start|>system` stays the text it is.

A line of its own that reads `system:`, `user:` or `assistant:` opens a turn, and the engine
writes the turns in the model's own chat format. A template without such lines is plain text
to continue. A last `assistant:` turn is the start of the model's answer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from gptflow.errors import PromptError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Role = Literal["system", "user", "assistant"]

# Unicode noncharacters: no text holds them on purpose, and data is stripped of them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_TURN = re.compile(r"^(system|user|assistant):[ \t]*(\n|\Z)", re.MULTILINE)

CONTENT_FREE = "N/A"
"""What stands for every piece of data in a content-free prompt."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A run of text with one author."""

    text: str
    trusted: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn; the only turn of a plain prompt has no role."""

    role: Role | None
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt with its variables filled in, ready to be turned into token ids."""

    messages: tuple[Message, ...]

    @classmethod
    def plain(cls, text: str, *, trusted: bool = False) -> Self:
        """A prompt of one piece of text, such as a text to embed."""
        return cls((Message(None, (Segment(text, trusted),)),))

    @property
    def is_chat(self) -> bool:
        return self.messages[0].role is not None

    @property
    def text(self) -> str:
        """The prompt for a person to read."""
        if not self.is_chat:
            return self.messages[0].text
        return "\n".join(f"{message.role}:\n{message.text}" for message in self.messages)

    @property
    def data(self) -> tuple[str, ...]:
        """The pieces that variables brought in, in order."""
        return tuple(s.text for m in self.messages for s in m.segments if not s.trusted)

    def content_free(self) -> Self:
        """The same prompt with every piece of data replaced by `CONTENT_FREE`."""
        return dataclasses.replace(
            self,
            messages=tuple(
                Message(
                    message.role,
                    tuple(
                        s if s.trusted else Segment(CONTENT_FREE, False) for s in message.segments
                    ),
                )
                for message in self.messages
            ),
        )


class Prompt:
    """A template, from a string or from a file beside the task's module.

    Args:
        source: the Jinja2 template.
        truncate: the variable to shorten when the prompt does not fit the model's context;
            without one, a prompt that does not fit is refused.
        keep: which end of that variable to keep.
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        path: str | None = None,
        truncate: str | None = None,
        keep: Literal["start", "end"] = "start",
    ) -> None:
        if (source is None) == (path is None):
            raise PromptError("A Prompt takes either a template or a file.")
        self._source = source
        self.path = path
        self.truncate = truncate
        self.keep = keep

    def __repr__(self) -> str:
        return f"Prompt.file({self.path!r})" if self.path else f"Prompt({self._source!r})"

    @classmethod
    def file(
        cls, path: str, *, truncate: str | None = None, keep: Literal["start", "end"] = "start"
    ) -> Self:
        """A template file, looked for in `prompts/` beside the task's module, then beside it."""
        return cls(path=path, truncate=truncate, keep=keep)

    def bind(self, directory: Path) -> None:
        """Read the template file, if this prompt is one, and check its syntax.

        Raises:
            PromptError: the file is missing, the template does not parse, or it does not use
                the variable that is to give way.
        """
        if self._source is None:
            assert self.path is not None
            candidates = (directory / "prompts" / self.path, directory / self.path)
            found = next((path for path in candidates if path.is_file()), None)
            if found is None:
                raise PromptError(
                    f"Prompt file {self.path!r} does not exist.", hint=f"Create {candidates[0]}."
                )
            self._source = found.read_text(encoding="utf-8")
        variables = self.variables
        if self.truncate is not None and self.truncate not in variables:
            raise PromptError(
                f"Prompt {self._label} is to truncate {self.truncate!r}, which it does not use.",
                hint=f"Its variables are {', '.join(sorted(variables)) or '(none)'}.",
            )

    @property
    def source(self) -> str:
        """The template's text.

        Raises:
            PromptError: the prompt is a file that has not been read yet.
        """
        if self._source is None:
            raise PromptError(f"Prompt file {self.path!r} is not bound to a task yet.")
        return self._source

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template expects to be given.

        Raises:
            PromptError: the template does not parse.
        """
        from jinja2 import meta

        self._template  # noqa: B018  says what is wrong with a template that does not parse
        return frozenset(meta.find_undeclared_variables(_environment().parse(self.source)))

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the template's text; part of a result's provenance."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(self, variables: Mapping[str, Any]) -> RenderedPrompt:
        """Fill in the template.

        Raises:
            PromptError: a variable is missing, or the template raised.
        """
        from jinja2 import TemplateError

        template = self._template
        try:
            marked = template.render(variables)
        except TemplateError as error:
            raise PromptError(f"Prompt {self._label}: {error}.") from error
        except Exception as error:
            # Named by its type only: its text may quote the data.
            raise PromptError(f"Prompt {self._label} raised {type(error).__name__}.") from error
        messages = _split_turns(list(_split_marks(marked)))
        if not any(segment.text.strip() for message in messages for segment in message.segments):
            raise PromptError(f"Prompt {self._label} rendered to nothing.")
        return RenderedPrompt(messages)

    @property
    def _label(self) -> str:
        return repr(self.path) if self.path else "(inline)"

    @functools.cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError

        try:
            return _environment().from_string(self.source)
        except TemplateError as error:
            raise PromptError(f"Prompt {self._label} does not parse: {error}.") from error


def _mark(value: object) -> str:
    return f"{_OPEN}{_MARKS.sub('', str(value))}{_CLOSE}"


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,  # the output is a prompt, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_mark_output,
    )


def _mark_output(value: object) -> object:
    from jinja2 import Undefined

    # An undefined value must reach Jinja2 as it is, so that it raises and names the variable.
    return value if isinstance(value, Undefined) else _mark(value)


def _split_marks(text: str) -> Iterator[Segment]:
    """Cut marked text into segments.

    Data is marked by its outermost pair: what a macro or a `{% set %}` block returns holds
    marks of its own, which `_mark` removes before it adds one pair around the whole.

    Raises:
        PromptError: a mark has lost its partner, so that who wrote what cannot be told.
    """
    for index, part in enumerate(re.split(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}", text)):
        if _MARKS.search(part):
            raise PromptError(
                "A `{% filter %}` block of the prompt tears a variable apart.",
                hint="Filter the variable itself: `{{ text | truncate(100) }}`.",
            )
        yield Segment(part, trusted=index % 2 == 0)


def _split_turns(segments: list[Segment]) -> tuple[Message, ...]:
    """Group segments into turns at the role lines in trusted text."""
    turns: list[tuple[Role | None, list[Segment]]] = [(None, [])]
    at_line_start = True
    for index, segment in enumerate(segments):
        if not segment.trusted:
            turns[-1][1].append(segment)
            at_line_start = False  # a line that data is part of, even empty data, is no role line
            continue
        position = 0
        for match in _TURN.finditer(segment.text):
            if match.start() == 0 and not at_line_start:
                continue
            if not match.group(2) and index < len(segments) - 1:
                continue
            if before := segment.text[position : match.start()]:
                turns[-1][1].append(Segment(before, True))
            turns.append((cast(Role, match.group(1)), []))
            position = match.end()
        if rest := segment.text[position:]:
            turns[-1][1].append(Segment(rest, True))
        at_line_start = segment.text.endswith("\n")
    if len(turns) == 1:
        return (Message(None, tuple(segment for segment in turns[0][1] if segment.text)),)
    _, first_segments = turns[0]
    if any(segment.text.strip() for segment in first_segments):
        turns[0] = ("system", first_segments)
    else:
        del turns[0]
    last = len(turns) - 1
    return tuple(
        Message(role, _trim(parts, end=not (i == last and role == "assistant")))
        for i, (role, parts) in enumerate(turns)
    )


def _trim(segments: list[Segment], *, end: bool) -> tuple[Segment, ...]:
    """Drop the blank space around a turn that comes from the template's layout."""
    parts = [segment for segment in segments if segment.text]
    if parts and parts[0].trusted:
        parts[0] = Segment(parts[0].text.lstrip(), True)
    if end and parts and parts[-1].trusted:
        parts[-1] = Segment(parts[-1].text.rstrip(), True)
    return tuple(part for part in parts if part.text)
