"""Heads: how a model's hidden states become an answer. Declarations only; no torch.

A task names one head; an engine computes it. Every head has one raw answer:

    head        raw answer    what it is
    Generate    Generated     one or more continuations
    Json        Parsed        a value that fits a JSON schema, enforced while decoding
    Choose      Chosen        one of some labels, by calibrated likelihood; no training
    Classify    Chosen        one of some labels, by a trained head; falls back to Choose
    MultiHead   Choices       several Classify heads over one forward pass
    Tag         Tagged        labelled spans of the text
    Score       Scored        one number per item of a list, or one for the whole prompt
    Embed       Embedded      one vector
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gptflow.prompt import Prompt

Pooling = Literal["mean", "last"]
FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all heads share.

    Attributes:
        adapter: the adapter alias to serve with; None serves the base model.
    """

    adapter: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generate(Head):
    """Free text.

    Attributes:
        max_tokens: most tokens in one continuation.
        temperature: 0 to 5; below 0.01 the most likely token is taken each time.
        top_k: sample among the k most likely tokens; 0 means all.
        top_p: sample among the smallest set of tokens whose mass reaches p.
        min_p: drop tokens less likely than this share of the likeliest one.
        repetition_penalty: 0.1 to 10; above 1 makes tokens that were already seen less likely.
        n: how many continuations to draw; they share one prefill.
        stop: strings that end a continuation; not part of it.
        logprobs: have the answer tell the log-probability of each token.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens is {self.max_tokens}; at least 1 is needed")
        _require(0 <= self.temperature <= 5, f"temperature {self.temperature} is not in 0..5")
        _require(self.top_k >= 0, f"top_k {self.top_k} is negative")
        _require(0 < self.top_p <= 1, f"top_p {self.top_p} is not in (0, 1]")
        _require(0 <= self.min_p <= 1, f"min_p {self.min_p} is not in 0..1")
        _require(
            0.1 <= self.repetition_penalty <= 10,
            f"repetition_penalty {self.repetition_penalty} is not in 0.1..10",
        )
        _require(1 <= self.n <= 64, f"n is {self.n}; 1 to 64 are served")
        _require(len(self.stop) <= 16 and all(self.stop), "stop takes up to 16 non-empty strings")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Json(Head):
    """A value that fits `schema`: a JSON Schema, or a pydantic model class that has one."""

    schema: Any
    max_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens is {self.max_tokens}; at least 1 is needed")
        _require(0 <= self.temperature <= 5, f"temperature {self.temperature} is not in 0..5")

    @property
    def json_schema(self) -> Mapping[str, Any]:
        """The schema as JSON."""
        build = getattr(self.schema, "model_json_schema", None)
        schema: Mapping[str, Any] = build() if build else self.schema
        return schema


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choose(Head):
    """One of `labels` by how likely the model finds each one as the prompt's continuation.

    A label's score is the mean log-probability of its tokens, less the same under a
    content-free prompt (Zhao et al. 2021, "Calibrate Before Use"): it cancels the model's
    taste for a label that the text has nothing to do with.

    Attributes:
        labels: what to answer, in order of preference when two tie.
        verbalizers: the text to score for a label where it is not the label itself.
        calibrate: subtract the content-free score.
        blank: prompt variables to blank out for it; by default all that the user wrote.
    """

    labels: tuple[str, ...]
    verbalizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    calibrate: bool = True
    blank: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        strange = set(self.verbalizers) - set(self.labels)
        _require(not strange, f"verbalizers for labels that do not exist: {sorted(strange)}")

    @property
    def texts(self) -> tuple[str, ...]:
        """What is scored for each label, in the labels' order."""
        return tuple(self.verbalizers.get(label, label) for label in self.labels)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Classify(Head):
    """One of `labels` by a trained head; by likelihood (`Choose`) while there is none.

    Attributes:
        fallback: the prompt to use with `Choose`; the task's own prompt by default.
    """

    labels: tuple[str, ...]
    verbalizers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fallback: Prompt | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    def as_choose(self) -> Choose:
        """The untrained form of this head."""
        return Choose(labels=self.labels, verbalizers=self.verbalizers)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MultiHead(Head):
    """Several `Classify` heads that share one prompt and, once trained, one forward pass."""

    heads: Mapping[str, Classify]

    def __post_init__(self) -> None:
        _require(bool(self.heads), "a MultiHead needs at least one head")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tag(Head):
    """Spans of one input field, each with one of `labels`.

    Without a trained adapter the model lists the spans as constrained JSON, and each one is
    looked up in the text, so that a span that does not occur there is never returned.
    """

    labels: tuple[str, ...]
    field: str = "text"

    def __post_init__(self) -> None:
        _check_labels(self.labels)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score(Head):
    """log P(yes) - log P(no) as the prompt's continuation, in nats.

    An adapter that has a trained score head gives that head's number instead.

    Attributes:
        each: the list field to fan out over; the template sees one entry as `item`.
        yes: the continuation that counts for an item.
        no: the continuation that counts against it.
    """

    each: str | None = None
    yes: str = "Yes"
    no: str = "No"

    def __post_init__(self) -> None:
        _require(bool(self.yes and self.no) and self.yes != self.no, "yes and no must differ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Head):
    """The final hidden states, pooled; scaled to length 1 when `normalize` is set."""

    pooling: Pooling = "mean"
    normalize: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost, in tokens. `cached` counts those of `tokens_in` not recomputed."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            cached=self.cached + other.cached,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """What all raw answers share.

    Attributes:
        adapter: `alias@sha256` of the adapter that served; None for the base model.
    """

    usage: Usage = Usage()
    adapter: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One drawn text, the mean log-probability of its tokens, and why it ended.

    Attributes:
        logprobs: of each of `tokens`, in nats and under the model itself, before temperature
            and penalties; empty unless they were asked for.
    """

    text: str
    tokens: tuple[int, ...] = ()
    mean_logprob: float = 0.0
    logprobs: tuple[float, ...] = ()
    finish: FinishReason = "stop"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generated(Raw):
    """`Generate`'s answer: `n` continuations in the order of their sample number."""

    continuations: tuple[Continuation, ...]

    @property
    def text(self) -> str:
        """The first continuation."""
        return self.continuations[0].text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parsed(Raw):
    """`Json`'s answer."""

    value: Any
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chosen(Raw):
    """The likeliest label, every label's probability, and the scores they come from.

    Attributes:
        scores: per label, the mean token log-probability after calibration, or a trained
            head's logit.
        threshold: the probability below which a trained head's label is not to be relied on.
        in_scope: whether the text is about one of the labels at all, as far as a trained head
            can tell: the energy of its scores (Liu et al. 2020) is that of such texts.
        calibrated: True only when the probabilities were fitted on labelled data.
    """

    label: str
    probs: Mapping[str, float]
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    threshold: float = 0.0
    in_scope: bool = True
    calibrated: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choices(Raw):
    """`MultiHead`'s answer: one `Chosen` per head."""

    by_head: Mapping[str, Chosen]

    def __getitem__(self, head: str) -> Chosen:
        return self.by_head[head]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Characters `start:end` of the tagged text."""

    text: str
    label: str
    start: int
    end: int
    score: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tagged(Raw):
    """`Tag`'s answer, in the order of the text."""

    spans: tuple[Span, ...]
    calibrated: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Raw):
    """`Score`'s answer: one value per item, in the items' order."""

    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Embedded(Raw):
    """`Embed`'s answer: as many numbers as the model is wide."""

    vector: tuple[float, ...]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_labels(labels: tuple[str, ...]) -> None:
    _require(isinstance(labels, tuple), f"labels must be a tuple, not {type(labels).__name__}")
    _require(len(labels) >= 2, "at least two labels are needed")
    _require(all(label.strip() for label in labels), "a label is blank")
    _require(len(set(labels)) == len(labels), f"a label occurs twice in {labels}")
