"""Out of scope: CLINC150 with the messages that are about none of its intents.

Two scores say how much a message is about any of them: the energy of its logits, and how near it is
to messages of the training. Thresholds are chosen on CLINC150's development rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptflow.config import Settings
from gptflow.engine.engine import TorchEngine
from gptflow.engine.tokenizer import Vocabulary
from gptflow.heads import Choices, Embed, Embedded
from gptflow.models import ModelStore
from gptflow.plugins import AnyTask
from gptflow.request import Request
from gptflow.training.evaluation.scope import choose_threshold, energy, neighbourhood
from gptflow.training.recording import TaskRecorder
from shipped.customer_intents import RECIPE, clinc150
from shipped.gates import Gate, Tell, serve

KEEP = 0.96
"""Of the development rows, the share that a threshold keeps in scope."""

ACCURACY, RECALL = 0.90, 0.60

Floats = NDArray[np.float64]

_JUDGED = ("val", "test", "oos_test")
_SECONDS = 3600.0


def judge_scope(data: Path, tell: Tell) -> list[Gate]:
    """Accuracy in scope and recall out of scope, as served and by both scores."""
    rows = clinc150(data)
    task, engine = serve(RECIPE)
    try:
        requests = {split: _requests(task, rows[split]) for split in ("train", *_JUDGED)}
        tell(f"{RECIPE.alias}: reading {len(rows['train'])} messages of the training")
        known = _vectors(engine, requests["train"])
        tell(f"{RECIPE.alias}: asking about {sum(len(rows[s]) for s in _JUDGED)} messages")
        asked = {split: _Asked(engine, requests[split]) for split in _JUDGED}
    finally:
        engine.close()
    labels = [label for _, label in rows["test"]]
    right = np.array([g == label for g, label in zip(asked["test"].labels, labels, strict=True)])
    gates = []
    scores = {
        "energy": {split: each.energy for split, each in asked.items()},
        "neighbours": {split: neighbourhood(each.vectors, known) for split, each in asked.items()},
    }
    inside = {"served": (asked["test"].in_scope, asked["oos_test"].in_scope)}
    for name, each in scores.items():
        least = choose_threshold(each["val"], KEEP)
        inside[name] = (each["test"] >= least, each["oos_test"] >= least)
    for name, (kept, strange) in inside.items():
        where = f"{RECIPE.alias}.scope.{name}"
        accuracy, recall = float((right & kept).mean()), float((~strange).mean())
        gates.append(Gate(name=f"{where}.accuracy", seen=accuracy, asked=ACCURACY))
        gates.append(Gate(name=f"{where}.recall", seen=recall, asked=RECALL))
    return gates


class _Asked:
    """What the head for everyday intents says to messages, and their vectors."""

    def __init__(self, engine: TorchEngine, requests: Sequence[Request]) -> None:
        answers = [engine.submit(request) for request in requests]
        raws = [answer.result(_SECONDS) for answer in answers]
        chosen = [raw["everyday"] for raw in raws if isinstance(raw, Choices)]
        self.labels = [each.label for each in chosen]
        self.in_scope = np.array([each.in_scope for each in chosen])
        self.energy = energy(np.array([list(each.scores.values()) for each in chosen]))
        self.vectors = _vectors(engine, requests)


def _requests(task: AnyTask, rows: Sequence[tuple[str, str]]) -> list[Request]:
    settings = Settings()
    model = ModelStore(settings.cache_dir, offline=settings.offline).find(settings.model)
    recorder = TaskRecorder(task, Vocabulary.from_folder(model.path), context=settings.slot_tokens)
    return recorder.record([text for text, _ in rows])


def _vectors(engine: TorchEngine, requests: Sequence[Request]) -> Floats:
    """`[messages, width]`: what the head is given."""
    embed = Embed(pooling="last", adapter=RECIPE.alias)
    answers = [engine.submit(Request(prompt=r.prompt, head=embed)) for r in requests]
    found = [answer.result(_SECONDS) for answer in answers]
    return np.array([each.vector for each in found if isinstance(each, Embedded)])
