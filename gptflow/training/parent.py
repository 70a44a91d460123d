"""Parent: the adapter that a training goes on from, and what is left of its own training here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gptflow.adapter import ClassifyHead, HeadSpec, Manifest, TagHead
from gptflow.adapter_info import HEAD_WEIGHTS, LORA_CONFIG, LORA_WEIGHTS
from gptflow.errors import AdapterCorrupt, AdapterMismatch, NotTrainable, UnreadableFile
from gptflow.models.adapter_store import AdapterStore, open_folder
from gptflow.models.model import Model
from gptflow.training import reservoir
from gptflow.training.artefact import METRICS
from gptflow.training.backbone import Backbone
from gptflow.training.data.rows import LabelledText, Row, TaggedText
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.objectives.objective import Objective
from gptflow.training.objectives.tags import TagObjective
from gptflow.training.reservoir import Kept
from gptflow.training.runs import RunTable
from gptflow.training.settings import TrainingSettings

O_ROW = "O"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An adapter, verified byte for byte.

    Attributes:
        reference: `alias@version`, or the folder of one that is in no store.
        alias: that it is served under; of a folder, its name.
        run: the id of the run that it came of.
    """

    reference: str
    alias: str
    folder: Path
    sha256: str
    manifest: Manifest

    @property
    def run(self) -> str:
        return self.manifest.version

    @classmethod
    def find(cls, store: AdapterStore, reference: str, model: Model) -> Parent:
        """An adapter by `alias`, `alias@version`, or its folder.

        Raises:
            AdapterNotFound: there is none.
            AdapterCorrupt: it was altered.
            AdapterMismatch: it was trained on another model.
        """
        if "/" in reference and (folder := Path(reference)).is_dir():
            version = open_folder(folder.resolve())
            reference = str(version.folder)
        else:
            version = store.find(reference)
            reference = version.reference
        store.verify(version, base=model.sha256)
        return cls(
            reference=reference,
            alias=version.alias,
            folder=version.folder,
            sha256=version.sha256,
            manifest=version.manifest,
        )

    def settings(self) -> dict[str, Any]:
        """The training settings that whoever goes on from it must have, too."""
        shape: dict[str, Any] = {"pooling": self.manifest.pooling}
        if not (self.folder / LORA_WEIGHTS).is_file():
            return shape | {"method": "head"}
        config = json.loads((self.folder / LORA_CONFIG).read_text(encoding="utf-8"))
        return shape | {
            "method": "lora",
            "rank": config["r"],
            "alpha": float(config["lora_alpha"]),
            "layers": "upper" if config.get("layers_to_transform") else "all",
        }

    def inherit(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that are given, and those that it brings.

        Raises:
            NotTrainable: one is given otherwise than it has it.
        """
        own = self.settings()
        for name, value in own.items():
            if given.get(name) is not None and given[name] != value:
                raise NotTrainable(
                    f"Adapter {self.reference} has {name} {value}, not {given[name]}.",
                    hint=f"Leave out `--{name.replace('_', '-')}`, or train anew.",
                )
        if given.get("in_scope") is None and (share := self._in_scope()) is not None:
            own["in_scope"] = share
        return {**given, **own}

    def _in_scope(self) -> float | None:
        """The share that its bounds of the energy were chosen by, where it has any."""
        specs = self.manifest.heads.values()
        if not any(getattr(spec, "energy", None) is not None for spec in specs):
            return None
        with contextlib.suppress(OSError, ValueError, KeyError):
            details = json.loads((self.folder / METRICS).read_text(encoding="utf-8"))
            return TrainingSettings.model_validate(details["settings"]).in_scope
        return None

    def rows(self, table: RunTable) -> list[Kept] | None:
        """What its run kept of the rows; None where the run is not on this machine."""
        return reservoir.load(table.folder / self.run) if self.run else None

    def require_rows(self, table: RunTable) -> list[Kept]:
        """What its run kept of the rows.

        Raises:
            NotTrainable: nothing.
            UnreadableFile: it is damaged.
        """
        rows = self.rows(table)
        if not rows:
            raise NotTrainable(
                f"None of the rows that {self.reference} was trained on are kept on this machine, "
                "so what it knows would be forgotten.",
                hint="Give old rows with `--data`, too; or go on without them: `--replay 0`.",
            )
        return rows

    def take_weights(
        self, backbone: Backbone, heads: TrainedHeads, objective: Objective[Any]
    ) -> Fresh:
        """Give LoRA and heads its values, the heads' rows by the names of their labels.

        Raises:
            NotTrainable: its LoRA is of other layers or another rank.
            AdapterMismatch: it answers nothing that the task asks.
            AdapterCorrupt: its heads are not as large as its manifest says.
        """
        if backbone.has_lora:
            backbone.load_lora(load_file(self.folder / LORA_WEIGHTS))
        path = self.folder / HEAD_WEIGHTS
        tensors = load_file(path) if path.is_file() else {}
        masks, labels = dict[str, torch.Tensor](), list[str]()
        for name, wanted in row_names(objective).items():
            spec = self.manifest.heads.get(name)
            known = names_of(spec) if spec is not None else ()
            fresh = [row for row in wanted if row not in known]
            if len(fresh) == len(wanted):
                raise AdapterMismatch(
                    f"Adapter {self.reference} has no head {name!r} with any of the task's labels.",
                    hint="Train anew, without `--continue`.",
                )
            layer = heads[name]
            places = {row: place for place, row in enumerate(known)}
            try:
                with torch.no_grad():
                    for number, row in enumerate(wanted):
                        if row in places:
                            layer.weight[number] = tensors[f"{name}.weight"][places[row]]
                            if f"{name}.bias" in tensors:
                                layer.bias[number] = tensors[f"{name}.bias"][places[row]]
            except (KeyError, IndexError, RuntimeError) as error:
                raise AdapterCorrupt(
                    f"Adapter {self.reference}: {HEAD_WEIGHTS} does not hold the head {name!r} of "
                    f"its manifest: {error}.",
                    hint="Copy the adapter again, or train it again.",
                ) from None
            old = torch.tensor([row in places for row in wanted], device=layer.weight.device)
            parameters = {id(layer.weight): old[:, None], id(layer.bias): old}
            masks |= {n: parameters[id(p)] for n, p in heads.trained.items() if id(p) in parameters}
            labels += fresh
        return Fresh(tuple(labels), masks)


@dataclasses.dataclass(frozen=True, slots=True)
class Fresh:
    """What a parent knew nothing of.

    Attributes:
        labels: of the heads' rows that begin at zero.
        known: by the heads' parameters, which of their rows are the parent's.
    """

    labels: tuple[str, ...]
    known: Mapping[str, torch.Tensor]


def row_names(objective: Objective[Any]) -> dict[str, tuple[str, ...]]:
    """Per head, what each row of its weight stands for."""
    if isinstance(objective, LabelObjective):
        return {name: tuple(labels) for name, labels in objective.labels.items()}
    if isinstance(objective, TagObjective):
        return {name: _tag_rows(objective.labels) for name in objective.heads}
    return {name: tuple(map(str, range(count))) for name, count in objective.heads.items()}


def names_of(spec: HeadSpec) -> tuple[str, ...]:
    """The same of a head in a manifest."""
    if isinstance(spec, ClassifyHead):
        return spec.labels
    if isinstance(spec, TagHead):
        return _tag_rows(spec.labels)
    return tuple(map(str, range(spec.rows)))


def still_known(rows: Sequence[Kept], objective: Objective[Any]) -> list[Kept]:
    """Without the rows whose labels the task has no more."""
    return [kept for kept in rows if _known(kept.row, objective)]


def _known(row: Row, objective: Objective[Any]) -> bool:
    if isinstance(row, LabelledText) and isinstance(objective, LabelObjective):
        labels = objective.labels
        return all(n in labels and label in labels[n] for n, label in row.labels.items())
    if isinstance(row, TaggedText) and isinstance(objective, TagObjective):
        return all(tag == O_ROW or tag[2:] in objective.labels for tag in row.tags)
    return True


def require_kind(rows: Sequence[Kept], row: Row) -> None:
    """Refuse old rows of another kind than the new ones.

    Raises:
        UnreadableFile: they are.
    """
    if strange := next((kept for kept in rows if type(kept.row) is not type(row)), None):
        raise UnreadableFile(
            f"The rows that are kept are {type(strange.row).__name__}s, and the new ones are "
            f"{type(row).__name__}s.",
            hint="Give new rows of the same kind, or go on without the old ones: `--replay 0`.",
        )


def _tag_rows(labels: Sequence[str]) -> tuple[str, ...]:
    return (O_ROW, *(f"{which}-{label}" for label in labels for which in "BI"))
