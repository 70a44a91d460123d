"""Adapters: what a folder of trained weights says about itself. No torch.

An adapter is a folder of plain files:

    manifest.json               this module's `Manifest`
    adapter_config.json         LoRA, in PEFT's format; with
    adapter_model.safetensors     its matrices; both or neither
    head.safetensors            per head `NAME.weight [rows, width]`, maybe `NAME.bias [rows]`
    floor-NAME.json, floor-NAME.safetensors     a simple model that answers in a head's place
    metrics.json, README.md     how good it is, and its model card: for people

A head is a linear map of the model's final hidden states, those that its `lm_head` is given.
`Classify` and `Score` heads take the pooled one, `Tag` heads that of every token of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gptflow.adapter_info import LORA_CONFIG, LORA_WEIGHTS, MANIFEST, FloorKind, floor_files
from gptflow.errors import AdapterCorrupt, AdapterMismatch
from gptflow.heads import Pooling

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEAD_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LESS_IS_BETTER = ("ece", "loss", "perplexity")

Sha256 = Annotated[str, Field(pattern=_SHA256.pattern)]
Labels = Annotated[tuple[str, ...], Field(min_length=1)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyHead(_Strict):
    """One of `labels`: the softmax of the head's rows over `temperature`.

    Attributes:
        thresholds: per label, the probability below which it is not to be relied on.
        energy: the least energy of a text that is about one of the labels,
            which is the log of the sum of its exponentiated logits (Liu et al. 2020).
    """

    kind: Literal["classify"] = "classify"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Temperature = 1.0
    thresholds: Mapping[str, Annotated[float, Field(ge=0, le=1)]] = {}
    energy: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return len(self.labels)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _distinct(self.labels)
        strange = set(self.thresholds) - set(self.labels)
        if strange:
            raise ValueError(f"thresholds for labels that do not exist: {sorted(strange)}")
        return self


class TagHead(_Strict):
    """Spans of the text, in the IOB2 scheme: row 0 is O, then B and I of each label in turn.

    A label's B belongs to the first token of a span and its I to the others.

    Attributes:
        echo: the prompt holds the text twice and the second copy is tagged, so that every
            token of it has seen the whole text.
    """

    kind: Literal["tag"] = "tag"
    labels: Labels
    temperature: Temperature = 1.0
    echo: bool = False

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return 1 + 2 * len(self.labels)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _distinct(self.labels)
        return self


class ScoreHead(_Strict):
    """One number: the head's only row."""

    kind: Literal["score"] = "score"

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return 1


HeadSpec = Annotated[ClassifyHead | TagHead | ScoreHead, Field(discriminator="kind")]


class BaseModelRef(_Strict):
    """The model that the adapter was trained on.

    Attributes:
        sha256: of the weights. The same model may come in several files, such as an original
            and its de-quantised copy; the adapter is meant for all that are listed.
    """

    id: str
    sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]


class Data(_Strict):
    """A data set that the adapter was trained or measured on.

    Attributes:
        rows: that were used of it; 0 where they were not counted for it alone.
    """

    name: str
    sha256: Sha256
    licence: str
    rows: Annotated[int, Field(ge=0)] = 0
    split: str = ""


class Metric(_Strict):
    """A measured quality, and that of the simple method it has to beat."""

    value: Annotated[float, Field(allow_inf_nan=False)]
    floor: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def loses(self) -> bool:
        """Whether the simple method is as good."""
        return self.floor is not None and self.value <= self.floor


class Floor(_Strict):
    """A simple model that answers in place of a head, being as good, or together with it.

    Attributes:
        field: of the task's input, whose text it reads.
        temperature: of its logits, where it answers in place of the head.
        weight: of its log-probabilities, which are added to the head's logits where the two
            answer together; None where it answers in place of the head.
    """

    kind: FloorKind
    field: str
    temperature: Temperature = 1.0
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @property
    def stands_in_for(self) -> Literal["classify", "tag"]:
        """The kind of head."""
        return "tag" if self.kind == "dictionary" else "classify"


class Manifest(_Strict):
    """What an adapter is for, what it was made of and how good it is.

    Attributes:
        v: version of this format.
        task: the task it was trained for; empty where it is for any that generates text.
        heads: its heads by name. A name is what `MultiHead` calls it, or any other.
        floors: by head, the simple models that answer in place of a head or together with it.
        pooling: what `classify` and `score` heads are given: the last token's hidden state or
            the mean over all.
        lora_rank: the rank of its LoRA matrices; None if it has none.
        prompt: SHA-256 of the prompt's template that it was trained with.
        metrics: by name; `primary` names the one that it is judged by.
        gates: by metric, what it must reach to be promoted; `ece` is at most its gate.
        code: version of the code that made it.
        files: every other file of the adapter, with its SHA-256.
    """

    v: Literal[1] = 1
    task: str
    version: str = ""
    base: BaseModelRef
    heads: Mapping[str, HeadSpec] = {}
    floors: Mapping[str, Floor] = {}
    pooling: Pooling = "last"
    lora_rank: Annotated[int, Field(ge=1)] | None = None
    data: tuple[Data, ...] = ()
    prompt: Sha256 | None = None
    metrics: Mapping[str, Metric] = {}
    primary: str = ""
    gates: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    code: str = ""
    created: str = ""
    files: Mapping[str, Sha256]

    @field_validator("heads")
    @classmethod
    def _names(cls, heads: Mapping[str, HeadSpec]) -> Mapping[str, HeadSpec]:
        for name in heads:
            if not _HEAD_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a head's name: lower-case letters, digits and _")
        return heads

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: Mapping[str, str]) -> Mapping[str, str]:
        for name in files:
            if name in ("", ".", "..", MANIFEST) or any(c in name for c in "/\\\0:"):
                raise ValueError(f"{name!r} is not the name of a file of the adapter")
        return files

    @model_validator(mode="after")
    def _files(self) -> Self:
        lora = {LORA_CONFIG, LORA_WEIGHTS} & set(self.files)
        if len(lora) == 1:
            raise ValueError(f"{LORA_CONFIG} and {LORA_WEIGHTS} belong together")
        for name, floor in self.floors.items():
            if getattr(self.heads.get(name), "kind", "") != floor.stands_in_for:
                raise ValueError(
                    f"the floor {name!r} has no {floor.stands_in_for} head to stand in for"
                )
            if floor.weight is not None and floor.stands_in_for != "classify":
                raise ValueError(f"the floor {name!r} has no logits to add to a head's")
            if missing := set(floor_files(name, floor.kind)) - set(self.files):
                raise ValueError(f"{min(missing)} of the floor {name!r} is not listed")
        if not lora and not self.heads:
            raise ValueError("an adapter has LoRA weights, heads, or both")
        return self

    @classmethod
    def parse(cls, text: bytes | str, *, name: str) -> Self:
        """Read a manifest's JSON.

        Raises:
            AdapterCorrupt: naming the adapter and the first field that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or MANIFEST
            raise AdapterCorrupt(
                f"Adapter {name!r}: {MANIFEST} is malformed at {where}: {first['msg']}."
            ) from None

    def to_json(self) -> str:
        """The text of `manifest.json`; the same manifest always gives the same text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    def missed(self) -> tuple[str, ...]:
        """Why it should not be promoted, in words: gates that it misses, a floor that it loses to.

        A gate on a figure that was not measured is missed. Where a simple model answers in a
        head's place, its figures count, and that it is better is nothing to be said.
        """
        words = []
        for name, gate in self.gates.items():
            at_most = name.rpartition(".")[2] in _LESS_IS_BETTER
            metric = self.metrics.get(name)
            if metric is None:
                words.append(f"{name} was not measured")
                continue
            served = metric.value
            if metric.floor is not None and self._is_floors(name):
                served = metric.floor
            if not (served <= gate if at_most else served >= gate):
                words.append(f"{name} is {served:.3f}, not {'≤' if at_most else '≥'} {gate:g}")
        for name, metric in self.metrics.items():
            judged = name == self.primary or name.endswith(f".{self.primary}")  # of one head
            if "." not in name and self.replaced:
                continue  # of all heads, some of which are floors
            if judged and not self._is_floors(name) and metric.loses:
                words.append(
                    f"{name} is {metric.value:.3f}, and a simple model reaches {metric.floor:.3f}"
                )
        return tuple(words)

    @property
    def replaced(self) -> frozenset[str]:
        """The heads in whose place simple models answer."""
        return frozenset(name for name, floor in self.floors.items() if floor.weight is None)

    @property
    def loses(self) -> bool:
        """Whether a simple model is as good by the figure that the adapter is judged by."""
        metric = self.metrics.get(self.primary)
        return metric is not None and metric.loses

    def _is_floors(self, figure: str) -> bool:
        """Whether simple models answer in place of all heads that a figure is of."""
        head, dot, _ = figure.rpartition(".")
        return (
            head in self.replaced
            if dot
            else bool(self.replaced) and self.replaced == set(self.heads)
        )

    def head(self, kind: str, labels: tuple[str, ...] = (), name: str = "") -> str:
        """The name of the head that answers a request.

        Args:
            kind: `classify`, `tag` or `score`.
            labels: that it must know, in whatever order.
            name: of the head, where the request names it.

        Raises:
            AdapterMismatch: none does, or several do.
        """
        of_kind = {n: spec for n, spec in self.heads.items() if spec.kind == kind}
        if name:
            of_kind = {n: spec for n, spec in of_kind.items() if n == name}
        fitting = [
            n for n, spec in of_kind.items() if set(getattr(spec, "labels", ())) == set(labels)
        ]
        if len(fitting) == 1:
            return fitting[0]
        what = f"{kind} head" + (f" {name!r}" if name else "")
        if fitting:
            raise AdapterMismatch(f"The adapter for {self.task!r} has several fitting {what}s.")
        if of_kind:
            raise AdapterMismatch(
                f"The adapter for {self.task!r} was trained for other labels than "
                f"{', '.join(labels)}.",
                hint="Train the adapter again, or give the task the adapter's labels.",
            )
        raise AdapterMismatch(f"The adapter for {self.task!r} has no {what}.")


def _distinct(labels: tuple[Any, ...]) -> None:
    if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise ValueError("labels must be distinct and not blank")
