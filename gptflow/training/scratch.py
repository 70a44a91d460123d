"""Scratch: a model with random weights, of an architecture that a configuration describes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gptflow.engine.loader import check_config, check_model
from gptflow.engine.tokenizer import Vocabulary
from gptflow.errors import ConfigError, GPTFlowError
from gptflow.models import Model
from gptflow.training.artefact import write_model

START = "start"
"""In a run's folder: the model with random weights that it begins with."""

_HINT = 'As in a model\'s config.json: `{"model_type": "llama", "hidden_size": 256, ...}`.'
_INHERITED = ("bos_token_id", "eos_token_id", "pad_token_id")


def make_model(folder: Path, config: Path, origin: Path, *, seed: int) -> Model:
    """Write a model folder with random weights and another model's tokenizer.

    Args:
        config: JSON, as transformers writes it. The size of the vocabulary and the numbers of
            its special tokens are the tokenizer's where it does not say them.
        origin: the folder of the model that has the tokenizer.

    Raises:
        ConfigError: the file does not describe a model, or one of too small a vocabulary.
        UnsupportedModel: the engine would not serve it.
        AdapterNotSaved: the disk is full; nothing is kept.
    """
    values = _read(config)
    known = _read(origin / "config.json")
    size = Vocabulary.from_folder(origin).size
    given = {name: known[name] for name in _INHERITED if known.get(name) is not None}
    given |= {"vocab_size": size, **values}
    kind = given.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigError(f"{config} names no model_type.", hint=_HINT)
    try:
        made: Any = AutoConfig.for_model(kind, **given)
    except Exception as error:  # noqa: BLE001  its checks raise what they like
        raise ConfigError(f"{config} describes no model: {_told(error)}", hint=_HINT) from None
    check_config(made)
    if made.vocab_size < size:
        raise ConfigError(
            f"{config} has a vocabulary of {made.vocab_size}, and the tokenizer one of {size}.",
            hint="Leave vocab_size out, or name another tokenizer with `--model`.",
        )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
            model.eval()
            check_model(model)
    except GPTFlowError:
        raise
    except Exception as error:  # noqa: BLE001  of whatever kind
        raise ConfigError(f"{config} makes no model: {_told(error)}", hint=_HINT) from None
    return write_model(folder, model, origin)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint=_HINT) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", hint=_HINT) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no object.", hint=_HINT)
    return found


def _told(error: Exception) -> str:
    """An error of another library in one line."""
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{words[:300]}."
