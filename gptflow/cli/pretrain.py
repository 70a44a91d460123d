"""`gptflow pretrain`: from raw text to an adapter for any task, or to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptflow.cli.session import Session, json_option, note, print_json
from gptflow.cli.sources import source_options
from gptflow.cli.training_options import data_files, gates_of, settings_options
from gptflow.cli.training_run import run_table, settings_of, tell, train_run, watching

if TYPE_CHECKING:
    from gptflow.training.data.source import Source
    from gptflow.training.runs import Run

_FILE = click.Path(path_type=Path)
_OF_HEADS = (
    "pooling",
    "head_learning_rate",
    "class_weights",
    "pairwise",
    "beta",
    "in_scope",
    "replay",
    "ewc",
    "keep",
)


@click.command(short_help="Train a model on raw text.")
@click.option("--data", multiple=True, type=_FILE, help="Text to train on.")
@click.option("--dev", "dev_files", multiple=True, type=_FILE, help="Text to choose by.")
@click.option("--test", "test_files", multiple=True, type=_FILE, help="Text to measure with, once.")
@click.option("--adapter", metavar="ALIAS", default="pretrained", show_default=True)
@click.option("--config", "shape", type=_FILE, help="Of a model to begin from scratch, JSON.")
@click.option("--gate", "gates", multiple=True, metavar="FIGURE=VALUE", help="To be promoted.")
@click.option("--data-name", metavar="TEXT", help="For the model card.  [default: the file's]")
@click.option("--licence", metavar="TEXT", default="unknown", help="Of the data.")
@click.option("--model", help="To train; from scratch, whose tokenizer.  [default: the settings']")
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, or `last`.")
@click.option("--window", type=click.IntRange(2), help="Tokens read at once.  [default: 512]")
@settings_options(without=_OF_HEADS)
@source_options
@json_option
@click.pass_obj
def pretrain(
    session: Session,
    /,
    data: tuple[Path, ...],
    dev_files: tuple[Path, ...],
    test_files: tuple[Path, ...],
    adapter: str,
    shape: Path | None,
    gates: tuple[str, ...],
    data_name: str | None,
    licence: str,
    model: str | None,
    resume: str | None,
    kind: str | None,
    source: Source,
    as_json: bool,
    **settings: Any,
) -> None:
    """Go on with a model's training on raw text, or begin one with --config.

    Text is JSONL, CSV or Parquet with a field `text`, a document a row, or .txt files, a document
    a paragraph. With LoRA the outcome is an adapter that any task which generates text can name;
    with --method full, and from scratch, it is a model.
    """
    if resume is not None:
        if data:
            raise click.UsageError("--resume takes a run's data and settings from the run.")
        run = run_table(session).find(resume)
    elif not data:
        raise click.UsageError("Say on what to train: `gptflow pretrain --data FILE`.")
    else:
        if kind not in (None, "text"):
            raise click.UsageError("Pre-training takes rows of the kind text.")
        files = data_files(data, dev_files, test_files, "text", source, data_name or "", licence)
        if shape is not None and settings["method"] is None:
            settings["method"] = "full"
        run = _begin(session, files, settings, adapter, gates_of(gates), model, shape)
        note(f"run {run.folder.name}")
    record = train_run(session, run, watching(f"gptflow pretrain --resume {run.folder.name}"))
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        tell(record)


def _begin(
    session: Session,
    files: Any,
    given: Mapping[str, Any],
    adapter: str,
    gates: Mapping[str, float],
    model: str | None,
    shape: Path | None,
) -> Run:
    from gptflow.models import ModelStore
    from gptflow.training.pretraining import begin_pretraining

    settings = session.settings(model=model)
    store = ModelStore(settings.cache_dir, offline=settings.offline)
    return begin_pretraining(
        run_table(session),
        store.find(settings.model),
        files,
        settings_of("text", given),
        adapter=adapter,
        gates=gates,
        config=shape,
    )
