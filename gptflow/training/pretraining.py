"""Pretraining: runs of raw text, for no task: a model's training goes on, or begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gptflow import __version__
from gptflow.errors import NotTrainable
from gptflow.models.model import Model
from gptflow.training.runs import DataFile, Run, RunTable
from gptflow.training.scratch import START, make_model
from gptflow.training.settings import TrainingSettings

GATES: Mapping[str, float] = {"perplexity_fall": 0.0}
"""What has to be reached unless it is said otherwise: text is no less likely than before."""


def begin_pretraining(
    table: RunTable,
    model: Model,
    data: Sequence[DataFile],
    settings: TrainingSettings,
    *,
    adapter: str,
    gates: Mapping[str, float] | None = None,
    config: Path | None = None,
) -> Run:
    """Put a new run into the table; `training.train` without a task then trains it.

    Args:
        adapter: the alias that comes of it with LoRA; where all weights are trained, what the run
            is called by.
        config: of a model to begin from scratch, see `scratch.make_model`; `model` then only
            gives its tokenizer.

    Raises:
        NotTrainable: only a model all of whose weights are trained can begin from scratch.
        ConfigError, UnsupportedModel: see `scratch.make_model`.
    """
    if config is not None and settings.method != "full":
        raise NotTrainable(
            "LoRA on random weights would learn nothing of use.",
            hint="From scratch all weights are trained: `--method full`.",
        )
    run = table.create(
        task="",
        adapter=adapter,
        model=model.name,
        model_folder=str(model.path),
        model_sha256=model.sha256,
        settings=settings,
        gates={**GATES, **(gates or {})},
        data=tuple(data),
        code=f"gptflow {__version__}",
    )
    if config is not None:
        try:
            made = make_model(run.folder / START, config, model.path, seed=settings.seed)
        except BaseException:
            run.delete()
            raise
        run.update(
            model=f"{config.stem} from scratch, tokenizer of {model.name}",
            model_folder=str(made.path),
            model_sha256=made.sha256,
        )
    return run
