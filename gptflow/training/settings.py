"""Settings of a training run. They are kept with the run, and a resumed run must have the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gptflow import validation
from gptflow.errors import ConfigError
from gptflow.heads import Pooling

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e30)]
"""A greater one is no number in single precision once Adam has scaled it."""
Share = Annotated[float, Field(ge=0, lt=1)]


BY_KIND: Mapping[str, Mapping[str, float]] = {
    "preferences": {"learning_rate": 5e-5, "epochs": 1.0},
    "text": {"epochs": 1.0},
}
"""Defaults of their own that some kinds of rows have."""


class TrainingSettings(BaseModel):
    """How to train. The defaults suit a model of 135 M parameters and up to 20,000 rows.

    LoRA on all linear layers, with a learning rate about ten times that of full fine-tuning and
    small batches: Schulman et al. 2025, "LoRA Without Regret".

    Attributes:
        method: `lora` trains low-rank matrices and the head; `head` the head alone, on the frozen
            model; `full` every weight of the model, which then is another model.
        rank, alpha, dropout: of LoRA; alpha is twice the rank by default.
        layers: `upper` puts LoRA on the upper half of the layers only. What the lower half gives
            for each row never changes then: it is computed once and kept on disk.
        pooling: what `classify` and `score` heads are given.
        learning_rate: of LoRA's matrices, or of the model's weights; warmed up, then a cosine.
        head_learning_rate: of the head.
        epochs: passes over the training rows; a part of one will do.
        batch: examples between two updates.
        batch_tokens: most tokens in one forward pass, padding included; a batch is cut into as
            many passes as it takes.
        warmup: share of the updates in which the learning rate rises.
        clip: most length of the gradient.
        precision: `bf16` computes linear layers in bfloat16; weights stay in float32.
        evaluations: of the development split, per epoch.
        patience: evaluations without a better figure after which to stop; the best weights are
            kept.
        dev: share of the rows to put aside as the development split.
        keep_repeats: train on rows, too, that repeat another training row, or a held-out one.
        class_weights: weigh a label by the root of how rare it is.
        in_scope: of labels, the share of the development rows that are to be found about one of
            the labels. A text whose energy is less than theirs is about none of them.
        pairwise: of scores, learn which of two candidates of a query is the better one; otherwise
            learn each score by itself.
        adversarial: also learn from shifts of the tokens' states that raise the loss, see
            `gptflow.training.adversarial`.
        epsilon: the longest shift of a text, in lengths of its mean token.
        adversarial_steps: of `pgd` and `freelb`.
        replay: share of a batch that is old rows, where a run goes on from an adapter.
        rebalance: fit the head again after a training with replay, each label weighing the same.
        ewc: how strongly its weights are held in place, see `gptflow.training.anchor`; 0 for not.
        keep: rows to keep for a run that goes on from this one; 0 for none. By default 1000, or 50
            of each class where that is more.
        window: tokens that are read at once in pre-training.
        beta: of preferences, how far the model may go from the one that it was.
        serve_floor: have a simple model answer in a head's place where it is as good, or with it
            where the development rows find that better.
        storage: what LoRA's matrices and the heads are rounded to, before they are measured and
            saved.
        checkpoint_minutes: between two checkpoints.
        device: `auto` takes CUDA where there is a device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["lora", "head", "full"] = "lora"
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Positive | None = None
    dropout: Share = 0.05
    layers: Literal["all", "upper"] = "all"
    pooling: Pooling = "last"
    learning_rate: Rate = 3e-4
    head_learning_rate: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    epochs: Positive = 3.0
    batch: Annotated[int, Field(ge=1)] = 32
    batch_tokens: Annotated[int, Field(ge=16)] = 2048
    warmup: Share = 0.05
    clip: Positive = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluations: Annotated[int, Field(ge=1)] = 2
    patience: Annotated[int, Field(ge=1)] = 3
    dev: Annotated[float, Field(gt=0, lt=1)] = 0.1
    keep_repeats: bool = False
    class_weights: bool = False
    in_scope: Annotated[float, Field(gt=0, lt=1)] | None = None
    pairwise: bool = True
    adversarial: Literal["fgm", "pgd", "freelb"] | None = None
    epsilon: Positive | None = None
    adversarial_steps: Annotated[int, Field(ge=2, le=32)] | None = None
    replay: Share = 0.1
    rebalance: bool = True
    ewc: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    keep: Annotated[int, Field(ge=0)] | None = None
    window: Annotated[int, Field(ge=2)] = 512
    beta: Positive = 0.1
    serve_floor: bool = True
    storage: Literal["float16", "float32"] = "float16"
    checkpoint_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layers == "upper" and self.method != "lora":
            raise ValueError("layers = upper goes with the method lora")
        if self.epsilon is not None and self.adversarial is None:
            raise ValueError("epsilon goes with adversarial")
        if self.adversarial_steps is not None and self.adversarial not in ("pgd", "freelb"):
            raise ValueError("adversarial_steps go with adversarial = pgd or freelb")
        return self

    @property
    def scale(self) -> float:
        """LoRA's alpha."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @classmethod
    def of(cls, **given: object) -> Self:
        """Settings from values of which None means the default.

        Raises:
            ConfigError: a value does not fit; says which.
        """
        values = {name: value for name, value in given.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            told = validation.explain(error, values, whole="the training settings")
            raise ConfigError(
                f"Training: {told}.", hint="`gptflow train --help` shows the options."
            ) from None
