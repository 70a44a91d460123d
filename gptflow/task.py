"""Tasks: what a plugin's author writes.

    class Mood(Output):
        label: Literal["negative", "neutral", "positive"]

    class Sentiment(Task[Post, Chosen, Mood]):
        \"\"\"Market mood of one post.\"\"\"
        name = "sentiment.classify"
        prompt = Prompt.file("classify.j2")
        head = Choose(labels=("negative", "neutral", "positive"))

        def postprocess(self, input, raw):
            return Mood(label=raw.label)

A task of one step declares `prompt` and `head`; a task of several overrides `run` and awaits
the context's methods, each of which is batched with everybody else's requests.
"""

from __future__ import annotations

import abc
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gptflow import validation
from gptflow.cleaning import clean_all
from gptflow.errors import EmptyInput, InvalidInput, PluginError, PromptError
from gptflow.heads import (
    Choose,
    Chosen,
    Classify,
    Embed,
    Embedded,
    Generate,
    Generated,
    Head,
    MultiHead,
    Parsed,
    Raw,
    Score,
    Scored,
)
from gptflow.prompt import Prompt
from gptflow.suggestion import did_you_mean

if TYPE_CHECKING:
    from gptflow.config import Settings
    from gptflow.plugins import Registry
    from gptflow.result import Result

_NAME = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+")
_EMPTY = "gptflow_empty"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError(_EMPTY, "the text is empty or blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""A string field that must hold something; a blank one is `EmptyInput`, without a model call."""


class Input(BaseModel):
    """Base of input types: unknown fields are errors, strings are cleaned.

    A bare string is accepted where the input has a text field: `gptflow run TASK "..."`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_text(cls, text: str) -> Mapping[str, Any]:
        """The fields for a bare string: `text`, or else the first required field."""
        fields = cls.model_fields
        required = [name for name, field in fields.items() if field.is_required()]
        name = "text" if "text" in fields else next(iter(required), None)
        if name is None:
            raise PydanticCustomError("gptflow_text", "a bare string does not say what it is")
        return {name: text}

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        return clean_all(cls.from_text(data) if isinstance(data, str) else data)


class Output(BaseModel):
    """Base of output types: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


In = TypeVar("In", bound=Input)
RawT = TypeVar("RawT", bound=Raw)
Out = TypeVar("Out", bound=Output)


class Setup(Protocol):
    """What `Task.setup` is given, once per worker."""

    @property
    def directory(self) -> Path:
        """The folder of the task's package: data files are beside the module."""
        ...

    @property
    def settings(self) -> Settings:
        """The worker's settings."""
        ...

    @property
    def registry(self) -> Registry:
        """The worker's plugins: their sources, and whom to tell of alerts."""
        ...


class Context(Protocol):
    """What a running task may ask for. Every method is batched with other jobs' requests.

    A prompt is a `Prompt` of the task's class, filled in with `variables`, or a plain string,
    which counts as the user's text.
    """

    @property
    def job_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    async def generate(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Generated:
        """Continue the prompt. `options` are those of `heads.Generate`.

        With `stream`, the text also goes to whoever follows the job.
        """
        ...

    async def json(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        schema: Any,
        **options: Any,
    ) -> Parsed:
        """A value that fits `schema`. `options` are those of `heads.Json`."""
        ...

    async def choose(
        self,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        labels: Sequence[str],
        **options: Any,
    ) -> Chosen:
        """The likeliest label. `options` are those of `heads.Choose`."""
        ...

    async def score(
        self,
        prompt: Prompt,
        variables: Mapping[str, Any],
        items: Sequence[Any],
        *,
        baseline: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Scored:
        """One number per item; the template sees each one as `item`.

        Args:
            baseline: variables to replace for the content-free prompt whose score is
                subtracted, such as an empty history.
            options: those of `heads.Score`.
        """
        ...

    async def embed(self, text: str, **options: Any) -> Embedded:
        """The text as a vector. `options` are those of `heads.Embed`."""
        ...

    async def ask(
        self,
        head: Head,
        prompt: Prompt | str,
        variables: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
    ) -> Raw:
        """The general form of the methods above, for any head."""
        ...

    def is_trained(self, head: Head) -> bool:
        """Whether an adapter answers this head, one that its report finds better than its floor.

        It stays at hand until the job ends. For a task that has a simple method of its own, which
        answers where there is none.
        """
        ...

    async def map(self, task: str, inputs: Sequence[Any]) -> list[Result]:
        """Run another task on many inputs, as a batch through the queue where there is one."""
        ...

    def abstain(self, reason: str) -> None:
        """Say in the result that the answer is not to be relied on, and why."""
        ...

    def warn(self, message: str) -> None:
        """Add a line to the result's warnings."""
        ...


class Task(abc.ABC, Generic[In, RawT, Out]):
    """One kind of work that a plugin offers. Its docstring's first line is its summary.

    Attributes:
        name: `domain.verb`, unique among all plugins.
        prompt: the template of a single-step task.
        head: how a single-step task's answer is computed.
        examples: a JSONL file beside the module, one `{"input": ..., "expected": ...}` a line.
    """

    name: ClassVar[str]
    prompt: ClassVar[Prompt | None] = None
    head: ClassVar[Head | None] = None
    examples: ClassVar[str] = "examples.jsonl"

    input_type: ClassVar[type[Input]]
    output_type: ClassVar[type[Output]]
    _types: ClassVar[tuple[Any, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in vars(cls).get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Task):
                # A base between this class and Task may leave some types open, in any order.
                open_types = cast(Any, origin).__parameters__
                given = dict(zip(open_types, get_args(base), strict=True))
                types = open_types if origin is Task else origin._types
                cls._types = tuple(given.get(each, each) for each in types)
                input, _, output = cls._types
                if isinstance(input, type) and isinstance(output, type):
                    cls.input_type, cls.output_type = input, output

    def setup(self, ctx: Setup) -> None:
        """Load what the task needs, once per worker, before its first job."""

    def prepare(self, input: In) -> Mapping[str, Any]:
        """More variables for the prompt: passages found, features computed.

        Annotate the result with a `TypedDict` to have the template's variables checked when
        the task is registered.
        """
        return {}

    def head_for(self, input: In) -> Head:
        """The head to use; override it where it depends on the input, such as labels."""
        if self.head is None:
            raise PluginError(f"Task {self.name!r} has neither a head nor a `run` method.")
        return self.head

    def postprocess(self, input: In, raw: RawT) -> Out:
        """Turn the head's raw answer into the output."""
        raise PluginError(f"Task {self.name!r} has neither a `postprocess` nor a `run` method.")

    async def run(self, input: In, ctx: Context) -> Out:
        """The whole job. The default is one step: prepare, ask, postprocess."""
        if self.prompt is None:
            raise PluginError(f"Task {self.name!r} has neither a prompt nor a `run` method.")
        variables = dict(input) | dict(self.prepare(input))
        raw = await ctx.ask(self.head_for(input), self.prompt, variables, stream=True)
        return self.postprocess(input, cast(RawT, raw))

    # What follows is for the framework.

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(type(self)) or "").partition("\n")[0]

    @property
    def directory(self) -> Path:
        """The folder of the module that defines the task; in a notebook, the working one."""
        try:
            return Path(inspect.getfile(type(self))).resolve().parent
        except (OSError, TypeError):
            return Path.cwd()

    @property
    def location(self) -> str:
        """`file:line` of the class, for error messages."""
        try:
            path, (_, line) = inspect.getfile(type(self)), inspect.getsourcelines(type(self))
        except (OSError, TypeError):
            return f"{type(self).__module__}.{type(self).__qualname__}"
        return f"{path}:{line}"

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt of the class and of its head, by attribute name or `head.NAME`."""
        own = {
            name: value
            for cls in reversed(type(self).__mro__)
            for name, value in vars(cls).items()
            if isinstance(value, Prompt)
        }
        heads = self.head.heads if isinstance(self.head, MultiHead) else {"fallback": self.head}
        nested = {
            f"head.{name}": head.fallback
            for name, head in heads.items()
            if isinstance(head, Classify) and head.fallback is not None
        }
        return own | nested

    def check(self) -> None:
        """Read the prompts and check the declaration; called when the task is registered.

        Raises:
            PluginError: what is wrong, with the class's file and line.
        """
        cls = type(self)
        if not _NAME.fullmatch(getattr(cls, "name", "")):
            raise PluginError(
                f"{cls.__name__} at {self.location} needs a `name` such as 'domain.verb'."
            )
        if not hasattr(cls, "input_type"):
            raise PluginError(
                f"{cls.__name__} at {self.location} does not name its types.",
                hint="Write `class X(Task[MyInput, Generated, MyOutput])`.",
            )
        for given, base in ((cls.input_type, Input), (cls.output_type, Output)):
            if not issubclass(given, base):
                raise PluginError(
                    f"{cls.__name__} at {self.location} takes {given.__name__} for its "
                    f"{base.__name__.lower()}, which is not a subclass of gptflow.{base.__name__}."
                )
        for prompt in self.prompts().values():
            prompt.bind(self.directory)
        if self.prompt is not None and (known := self._variables()) is not None:
            extra = {self.head.each and "item"} if isinstance(self.head, Score) else set()
            if unknown := self.prompt.variables - known - extra:
                name = min(unknown)
                raise PromptError(
                    f"Prompt of task {self.name!r} uses {name!r}, which neither the input "
                    f"{self.input_type.__name__} nor `prepare` provides ({self.location}).",
                    hint=did_you_mean(name, known),
                )

    def _variables(self) -> set[str] | None:
        """The names the prompt can use; None where `prepare` does not say."""
        names = set(self.input_type.model_fields)
        if type(self).prepare is Task.prepare:
            return names
        returned = get_type_hints(type(self).prepare).get("return")
        if is_typeddict(returned):
            return names | set(get_type_hints(returned))
        return None

    def parse(self, data: Any) -> In:
        """Check an input.

        Raises:
            EmptyInput: there is nothing to work on.
            InvalidInput: which field is wrong, and how.
        """
        if isinstance(data, self.input_type):
            return cast(In, data)
        try:
            return cast(In, self.input_type.model_validate(data))
        except ValidationError as error:
            raise _explain(self.name, self.input_type, data, error) from None


def _explain(task: str, model: type[Input], data: Any, error: ValidationError) -> InvalidInput:
    hint = f"`gptflow plugins show {task}` shows the input."
    problems = validation.find_problems(error, data)
    for problem in problems:
        if problem.kind == _EMPTY:
            return EmptyInput(f"Task {task!r}: {problem.field!r} is empty or blank.")
        if problem.kind == validation.UNKNOWN and len(problem.path) == 1:
            return InvalidInput(
                f"Task {task!r} has no input field {problem.field!r}.",
                hint=did_you_mean(problem.field, model.model_fields) or hint,
            )
    told = validation.summarise(problems, whole="the input")
    return InvalidInput(f"Task {task!r}: {told}.", hint=hint)


__all__ = ["Choose", "Context", "Embed", "Generate", "Input", "Output", "Setup", "Task", "Text"]
