"""Backbone: the model that is trained, as final hidden states of padded texts.

Padding stands after a text and attention only looks back, so no text sees any, and no mask is
needed.

Where LoRA is on the upper half of the layers only, what the lower half gives is computed once and
put in place of its output ever after: the layers below are then passed over.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from gptflow.engine.loader import check_config, no_progress_bar
from gptflow.engine.lora_weights import find_projections
from gptflow.errors import ConfigError, ModelCorrupt, NotTrainable
from gptflow.training.dropout import ByteDropout
from gptflow.training.settings import TrainingSettings

_ADAPTER = "default"


class Backbone:
    """A causal model and what is trained of it.

    Args:
        model: of transformers, in float32; LoRA layers are put into it.
        model_id: what the adapter's configuration calls it.

    Attributes:
        first: the first layer that is trained; what is below is frozen. Where the head alone is
            trained, all layers are.
        width: of the hidden states.
    """

    def __init__(self, model: Any, settings: TrainingSettings, *, model_id: str) -> None:
        self.model = model
        self.first = 0
        self._settings = settings
        self._peft: peft.PeftModel | None = None
        self._exact = False
        self._decoder: Any = model.get_decoder()
        self._layers = _find_layers(self._decoder)
        self.width: int = model.config.hidden_size
        self.device = next(model.parameters()).device
        model.requires_grad_(settings.method == "full")
        if settings.method == "lora":
            self._add_lora(model_id)
        elif settings.method == "head":
            self.first = len(self._layers)
        self.train(False)

    @classmethod
    def load(cls, folder: Path, settings: TrainingSettings, *, model_id: str) -> Backbone:
        """Read a model folder.

        Raises:
            ModelCorrupt: it cannot be read.
            UnsupportedModel: the engine would not serve it.
            ConfigError: CUDA is asked for and there is none.
        """
        return cls(load_model(folder, settings), settings, model_id=model_id)

    def _add_lora(self, model_id: str) -> None:
        settings = self._settings
        names = {name.rpartition(".")[2] for name in find_projections(self.model)}
        count = len(self._layers)
        if settings.layers == "upper":
            self.first = count // 2
        upper = list(range(self.first, count)) if self.first else None
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.scale,  # type: ignore[arg-type]  # a number will do
            lora_dropout=settings.dropout,
            target_modules=sorted(names),
            layers_to_transform=upper,
            bias="none",
            task_type="CAUSAL_LM",
            fan_in_fan_out=self.model.config.model_type == "gpt2",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 for what it calls by another name by now.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(settings.seed)
            self._peft = peft.get_peft_model(self.model, config)
        self._peft.peft_config[_ADAPTER].base_model_name_or_path = model_id
        for name, module in self.model.named_modules():
            if name.endswith("lora_dropout"):
                module[_ADAPTER] = ByteDropout(settings.dropout)

    @property
    def has_lora(self) -> bool:
        """Whether it has LoRA's matrices."""
        return self._peft is not None

    @property
    def exact(self) -> bool:
        """Whether it computes in float32 just now."""
        return self._exact or self._settings.precision == "fp32"

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def train(self, on: bool) -> None:
        """Switch LoRA's dropout. The model's own stays off, so that frozen layers are constant."""
        self.model.eval()
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train(on)

    def hidden(
        self,
        texts: Sequence[Sequence[int]],
        lower: Sequence[torch.Tensor] | None = None,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states, those that the output layer is given.

        Args:
            texts: token ids.
            lower: per text, what the layers below `first` give, `[tokens, width]`.
            shift: `[texts, longest, width]`, added to what `entering` gives.

        Returns:
            `[texts, longest, width]` in float32; rows past a text's end mean nothing.
        """
        with self._precision(), self._injected(lower, shift):
            return self._read(texts).float()

    @torch.no_grad()
    def entering(
        self, texts: Sequence[Sequence[int]], lower: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """What enters the first trained layer: the embeddings, or what the lower layers give.

        Args:
            texts, lower: as for `hidden`.

        Returns:
            `[texts, longest, width]`, without a gradient.
        """
        if lower is not None:
            return pad(list(lower)).to(self.device)
        ids = pad([torch.tensor(text) for text in texts]).to(self.device)
        states: torch.Tensor = self.model.get_input_embeddings()(ids)
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer's logits of `[rows, width]` hidden states: `[rows, vocabulary]`."""
        with self._precision():
            out: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return out.float()

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], *, most: int, ends: Collection[int]) -> list[int]:
        """The likeliest token after a prompt again and again, up to one of `ends` or `most`."""
        found: list[int] = []
        ids = torch.tensor([list(prompt)], device=self.device)
        cache: Any = None
        while len(found) < most:
            with self._precision():
                out = self._decoder(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = int(self.logits(out.last_hidden_state[0, -1:].float()).argmax())
            if token in ends:
                break
            found.append(token)
            ids = torch.tensor([[token]], device=self.device)
        return found

    @torch.no_grad()
    def lower(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """What the layers below `first` give for each text, `[tokens, width]` in float32."""
        caught: list[torch.Tensor] = []

        def catch(_module: nn.Module, _given: Any, result: Any) -> None:
            caught.append(result[0] if isinstance(result, tuple) else result)
            raise _EnoughError

        hook = self._layers[self.first - 1].register_forward_hook(catch)
        try:
            with contextlib.suppress(_EnoughError):
                self._read(texts)
        finally:
            hook.remove()
        [states] = caught
        return [s[: len(text)].float().cpu() for s, text in zip(states, texts, strict=True)]

    def lora_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """LoRA's configuration and matrices, in PEFT's format."""
        assert self._peft is not None
        config = self._peft.peft_config[_ADAPTER].to_dict()
        config |= {"inference_mode": True}
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        tensors = peft.get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        return plain, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}

    def load_lora(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give LoRA's matrices these values, named as `lora_state` names them.

        Raises:
            NotTrainable: they are of other layers, or of another rank.
        """
        own = self.lora_state()[1]
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
            raise NotTrainable(
                "The adapter's LoRA matrices are of other layers or another rank than those that "
                "are trained here.",
                hint="Give the settings that it was trained with: `--rank`, `--layers`.",
            )
        assert self._peft is not None
        peft.set_peft_model_state_dict(self._peft, dict(tensors))

    def plain_model(self) -> Any:
        """The base model as it was before LoRA was put into it. This object is spent then."""
        return self.model if self._peft is None else self._peft.unload()

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 whatever the settings say, as for what is measured and kept."""
        self._exact = True
        try:
            yield
        finally:
            self._exact = False

    def visible(self, lengths: Sequence[int]) -> torch.Tensor | None:
        """Which tokens see which others; None for the model's own attention, which looks back.

        Args:
            lengths: of the texts, in tokens.

        Returns:
            `[texts, 1, longest, longest]` of booleans, the seen along the last axis.
        """
        return None

    def _read(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        ids = pad([torch.tensor(text) for text in texts]).to(self.device)
        mask = self.visible([len(text) for text in texts])
        out = self._decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        states: torch.Tensor = out.last_hidden_state
        return states

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=not self.exact)

    @contextlib.contextmanager
    def _injected(
        self, lower: Sequence[torch.Tensor] | None, shift: torch.Tensor | None
    ) -> Iterator[None]:
        """Have the lower layers give what is known already; shift what enters the others."""
        if lower is None:
            with contextlib.ExitStack() as hooks:
                if shift is not None:
                    embeddings = self.model.get_input_embeddings()
                    hook = embeddings.register_forward_hook(lambda _m, _i, out: out + shift)
                    hooks.callback(hook.remove)
                yield
            return
        states = pad(list(lower)).to(self.device)
        if shift is not None:
            states = states + shift
        kept = list(self._layers[: self.first])
        try:
            for number, layer in enumerate(kept):
                self._layers[number] = _Known(layer, states if number == self.first - 1 else None)
            yield
        finally:
            for number, layer in enumerate(kept):
                self._layers[number] = layer


class _EnoughError(Exception):
    """The lower half is computed; what is above need not be."""


class _Known(nn.Module):
    """Stands in for a layer whose output is known, or is not needed."""

    def __init__(self, layer: nn.Module, states: torch.Tensor | None) -> None:
        super().__init__()
        self._states = states
        for name in ("attention_type", "layer_type"):  # the model asks its layers for them
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden if self._states is None else self._states


def load_model(folder: Path, settings: TrainingSettings) -> Any:
    """A model in float32 on the settings' device; see `Backbone.load`."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device.", hint="Train with `--device cpu`.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_config(config)
        with no_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelCorrupt(f"The model in {folder} cannot be loaded: {error}.") from error
    return model.to(device)


def pad(texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[texts, longest, ...]`, zeros after each one's end."""
    return nn.utils.rnn.pad_sequence(list(texts), batch_first=True)


def round_to(parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
    """Give each parameter the value that it has when it is kept in `dtype`."""
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(parameter.to(dtype))


def _find_layers(decoder: nn.Module) -> nn.ModuleList:
    """The model's layers: the only list of modules that is as long as the configuration says."""
    count = decoder.config.num_hidden_layers  # type: ignore[union-attr]
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise NotTrainable(f"The layers of {type(decoder).__name__} are not found.")
