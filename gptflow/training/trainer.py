"""Trainer: updates weights batch by batch, keeps the best ones, stops early, survives a kill."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from gptflow.errors import LossNotFinite, TrainingError
from gptflow.training import checkpoint
from gptflow.training.activations import Activations
from gptflow.training.adversarial import EPSILON, STEPS, Adversary
from gptflow.training.anchor import Anchor
from gptflow.training.backbone import Backbone
from gptflow.training.batches import mixed_batches, passes, replayed_of
from gptflow.training.checkpoint import Progress, Weights
from gptflow.training.example import Example
from gptflow.training.heads import TrainedHeads
from gptflow.training.objectives.objective import Objective, RowT
from gptflow.training.processes import Processes
from gptflow.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

LOG = "log.jsonl"
"""In a run's folder: one record per update or evaluation."""

Outputs = Callable[[Backbone, TrainedHeads, Sequence[Example], torch.Tensor], list[Any]]
"""Computes something of each example from its hidden states, as `Objective.outputs` does."""

_CALMER = "Train anew with a lower `--learning-rate`, or with `--precision fp32`."


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """What is reported after each step.

    Attributes:
        loss: mean over what was learnt from: labels, tokens or pairs.
        tokens_per_s: of this sitting, padding not counted.
        figures: of the development split, where it was evaluated after this step.
        figure: that of them which decides which weights are the best; more is better.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_s: float
    figures: dict[str, float] | None = None
    figure: float | None = None


class Trainer(Generic[RowT]):
    """Trains a backbone and heads on examples.

    Args:
        folder: of the run; a checkpoint there is gone on from.
        dev: rows that decide which weights are the best, and when to stop.
        lower: what the frozen layers give, where they are not computed each time.
        replayed: old examples, of which each batch gets a share.
        report: called after each step; an exception that it raises stops the run, which can be
            gone on with.
        processes: that train together; only the first one writes.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: TrainedHeads,
        objective: Objective[RowT],
        settings: TrainingSettings,
        folder: Path,
        *,
        train: Sequence[Example],
        dev: Sequence[RowT],
        dev_examples: Sequence[Example],
        lower: Activations | None = None,
        replayed: Sequence[Example] = (),
        report: Callable[[Update], None] = lambda update: None,
        processes: Processes | None = None,
    ) -> None:
        self.backbone = backbone
        self.heads = heads.to(backbone.device)
        self._objective = objective
        self._settings = settings
        self._folder = folder
        self._train = [example for example in train if example.weight]
        old = [example for example in replayed if example.weight] if settings.replay else []
        self._old = len(old)
        self._train += old
        self._dev = dev
        self.dev_examples = dev_examples
        self._lower = lower
        self._report = report
        self._adversary = (
            Adversary(
                settings.adversarial,
                epsilon=settings.epsilon or EPSILON,
                steps=settings.adversarial_steps or STEPS,
            )
            if settings.adversarial
            else None
        )
        self._processes = processes or Processes()
        own = backbone.parameters
        self.parameters: dict[str, nn.Parameter] = {**own, **heads.trained}
        groups = [
            {"params": list(own.values()), "lr": 0.0, "peak": settings.learning_rate},
            {
                "params": list(heads.trained.values()),
                "lr": 0.0,
                "peak": settings.head_learning_rate,
            },
        ]
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=settings.weight_decay
        )
        self.anchor: Anchor | None = None
        self.progress = Progress()
        self._best: Weights = {}
        fresh = settings.batch - (replayed_of(settings.batch, settings.replay) if old else 0)
        self.per_epoch = -(-(len(self._train) - len(old)) // fresh)
        self.steps = max(1, math.ceil(settings.epochs * self.per_epoch))
        self._every = max(1, self.per_epoch // settings.evaluations)

    def run(self) -> Progress:
        """Train to the end, or until the figures get no better, and take the best weights.

        Raises:
            LossNotFinite: the loss, or its gradient, is not a number any more.
            ResumeRefused: the run's checkpoint is damaged or another run's.
            TrainingError: a checkpoint cannot be written.
        """
        if (found := checkpoint.load(self._folder)) is not None:
            checkpoint.restore(found, self.parameters, self._optimizer)
            self.progress, self._best = found.progress, found.best
        self._processes.equalise(self.parameters.values())
        self._processes.wait()  # all have read the checkpoint before it is written again
        started, before = time.monotonic(), self.progress.seconds
        saved = started
        tokens = 0
        epoch, batches = -1, list[list[int]]()
        while self.progress.step < self.steps and not self.progress.stopped:
            step = self.progress.step
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                batches = mixed_batches(
                    self._train,
                    self._old,
                    self._settings.batch,
                    self._settings.replay,
                    seed=self._settings.seed,
                    epoch=epoch,
                )
            batch = batches[step % self.per_epoch]
            rate = self._schedule(step)
            loss = self._update(step, batch)
            tokens += sum(len(text) for i in batch for text in self._train[i].texts)
            self.progress.step += 1
            self.progress.tokens += sum(len(t) for i in batch for t in self._train[i].texts)
            last = self.progress.step == self.steps
            figures = self._evaluate() if last or self.progress.step % self._every == 0 else None
            now = time.monotonic()
            self.progress.seconds = before + now - started
            update = Update(
                step=self.progress.step,
                steps=self.steps,
                epoch=self.progress.step / self.per_epoch,
                loss=loss,
                learning_rate=rate,
                tokens_per_s=tokens / max(now - started, 1e-9),
                figures=figures,
                figure=None if figures is None else figures[self._objective.primary],
            )
            self._log(update)
            due = now - saved >= 60 * self._settings.checkpoint_minutes
            if due or last or self.progress.stopped:
                self.save()
                saved = time.monotonic()
            stop: BaseException | None = None
            try:
                self._report(update)
            except BaseException as error:  # noqa: BLE001  it is raised when all have stopped
                stop = error
            if self._processes.any(stop is not None, self.backbone.device):
                self.save()  # whoever stops a run may go on with it from here
                raise stop or KeyboardInterrupt
        self.take(self._best)
        return self.progress

    def save(self) -> None:
        """Write a checkpoint now."""
        if self._processes.first:
            checkpoint.save(
                self._folder, self.progress, self.parameters, self._best, self._optimizer
            )

    def take(self, weights: Weights) -> None:
        """Give the parameters these values."""
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)

    @torch.no_grad()
    def predict(self, examples: Sequence[Example], what: Outputs | None = None) -> list[Any]:
        """The objective's outputs for examples, in their order, with the weights of now.

        Args:
            what: to compute in place of the outputs.
        """
        compute = what or self._objective.outputs
        outputs: list[Any] = [None] * len(examples)
        for part in passes(examples, range(len(examples)), 2 * self._settings.batch_tokens):
            chosen = [examples[i] for i in part]
            hidden = self._hidden(chosen)
            if not bool(hidden.isfinite().all()):
                raise LossNotFinite(
                    f"The model gives no numbers any more after step {self.progress.step}.",
                    hint=_CALMER,
                )
            found = compute(self.backbone, self.heads, chosen, hidden)
            for i, output in zip(part, found, strict=True):
                outputs[i] = output
        return outputs

    @property
    def examples(self) -> Sequence[Example]:
        """All that is trained on: new ones, and old ones that are replayed."""
        return self._train

    def measure(self, outputs: Sequence[Any] | None = None) -> dict[str, float]:
        """Figures of the development split, with the weights of now.

        Args:
            outputs: where they are known already.
        """
        if outputs is None:
            outputs = self.predict(self.dev_examples)
        return self._objective.figures(self._dev, self.dev_examples, outputs)

    def _update(self, step: int, batch: Sequence[int]) -> float:
        """One step of AdamW over a batch, in as many passes as it takes."""
        rank = self._processes.rank  # of several processes, no two drop out the same
        torch.manual_seed(hash((self._settings.seed, step, *([rank] if rank else []))) % 2**63)
        self.backbone.train(True)
        self._optimizer.zero_grad(set_to_none=True)
        weight = sum(self._train[i].weight for i in batch)
        total = 0.0
        own = self._processes.share(batch)
        for part in passes(self._train, own, self._settings.batch_tokens):
            total += self._backward([self._train[i] for i in part], weight)
        if self._processes.count > 1:
            total = self._add_up(total)
        if self.anchor is not None:
            total += self.anchor.pull()
        length = nn.utils.clip_grad_norm_(self.parameters.values(), self._settings.clip)
        self.backbone.train(False)
        if not (math.isfinite(total) and bool(length.isfinite())):
            raise LossNotFinite(
                f"The loss is {total} after step {step + 1} of {self.steps}.",
                hint=_CALMER,
            )
        self._optimizer.step()
        return total

    def add_gradients(self, examples: Sequence[Example]) -> None:
        """Add the gradients of the sum of the examples' losses to the parameters'."""
        texts, lower = self._texts(examples)
        hidden = self.backbone.hidden(texts, lower)
        loss = self._objective.loss(self.backbone, self.heads, examples, hidden)
        loss.backward()

    def _backward(self, examples: Sequence[Example], weight: float) -> float:
        """Add one pass's gradients; its part of the batch's loss."""
        texts, lower = self._texts(examples)

        def loss(shift: torch.Tensor | None = None) -> torch.Tensor:
            hidden = self.backbone.hidden(texts, lower, shift)
            return self._objective.loss(self.backbone, self.heads, examples, hidden) / weight

        if self._adversary is not None:
            states = self.backbone.entering(texts, lower)
            return self._adversary.backward(loss, states, [len(text) for text in texts])
        found = loss()
        found.backward()
        return float(found.detach())

    def _add_up(self, total: float) -> float:
        """Make this process's gradients and loss those of all."""
        for parameter in self.parameters.values():
            if parameter.grad is None:  # of a share without examples
                parameter.grad = torch.zeros_like(parameter)
        loss = torch.tensor(total, dtype=torch.float64, device=self.backbone.device)
        self._processes.add(
            [loss, *(p.grad for p in self.parameters.values() if p.grad is not None)]
        )
        return float(loss)

    def _hidden(self, examples: Sequence[Example]) -> torch.Tensor:
        return self.backbone.hidden(*self._texts(examples))

    def _texts(
        self, examples: Sequence[Example]
    ) -> tuple[list[tuple[int, ...]], list[torch.Tensor] | None]:
        """Token ids, and what the frozen layers give for them where that is kept."""
        texts = [text for example in examples for text in example.texts]
        known = self._lower is not None and all(text in self._lower for text in texts)
        lower = [self._lower[text] for text in texts] if self._lower and known else None
        return [text.ids for text in texts], lower

    def _schedule(self, step: int) -> float:
        """Warm up in a line, then go down a cosine to a tenth."""
        warm = max(1, round(self._settings.warmup * self.steps))
        if step < warm:
            share = (step + 1) / warm
        else:
            done = (step - warm) / max(1, self.steps - warm)
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        return float(self._optimizer.param_groups[0]["lr"])

    def _evaluate(self) -> dict[str, float]:
        """Measure the development split; keep the weights if they are the best so far."""
        found = self.measure() if self._processes.first else None
        figures = self._processes.tell(found)
        figure = figures[self._objective.primary]
        progress = self.progress
        progress.history.append({"step": progress.step, **figures})
        if progress.best is None or figure > progress.best:
            progress.best, progress.best_step, progress.worse = figure, progress.step, 0
            self._best = {n: p.detach().cpu().clone() for n, p in self.parameters.items()}
        else:
            progress.worse += 1
            progress.stopped = progress.worse >= self._settings.patience
        return figures

    def _log(self, update: Update) -> None:
        if not self._processes.first:
            return
        line = json.dumps(dataclasses.asdict(update) | {"time": time.time()}) + "\n"
        # Appended in one piece: a kill leaves whole lines.
        try:
            handle = os.open(self._folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise TrainingError(
                f"{self._folder / LOG} cannot be written: {error.strerror}.",
                hint=f"Make room, then `gptflow train --resume {self._folder.name}`.",
            ) from None
