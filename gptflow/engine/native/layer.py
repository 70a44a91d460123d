"""Decoder layers in one call: for the architectures whose layers are put together like Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gptflow.engine.native.library import (
    ACTIVATIONS,
    HEAD_WIDTHS,
    MAX_GROUP,
    Layer,
    Library,
    Shape,
    address,
)
from gptflow.engine.native.linear import Format, Target, multiply, pack

if TYPE_CHECKING:
    from gptflow.engine.native.step import Step

_LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "Gemma3DecoderLayer",
    }
)
"""Classes of transformers that `CompiledLayer` computes. The loader compares the answers."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class CompiledLayer(torch.nn.Module):
    """In place of a model's decoder layer: integers inside, the residual stream in float32.

    Args:
        layer: one that `is_known`.
        targets: by the projections' names within the layer, what adapters add to them.
    """

    def __init__(
        self, library: Library, layer: Any, numbers: Format, targets: Mapping[str, Target]
    ) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._library = library
        self._index: int = attention.layer_idx
        self._window: int | None = _window(attention)
        self._targets = targets
        self._width: int = attention.head_dim
        self._activation = ACTIVATIONS[_activation(mlp)]
        self._qkv = pack(library, [getattr(attention, name) for name in _PROJECTIONS], numbers)
        self._attended = pack(library, [attention.o_proj], numbers)
        self._gate_up = pack(library, [mlp.gate_proj, mlp.up_proj], numbers, gated=True)
        self._down = pack(library, [mlp.down_proj], numbers)
        self._sizes = [getattr(attention, name).weight.shape[0] for name in _PROJECTIONS]
        # Gemma normalises what a part says too, and calls the norm before the second part
        # otherwise.
        post = hasattr(layer, "pre_feedforward_layernorm")
        before_mlp = layer.pre_feedforward_layernorm if post else layer.post_attention_layernorm
        norms = {
            "attention_norm": layer.input_layernorm,
            "query_norm": getattr(attention, "q_norm", None),
            "key_norm": getattr(attention, "k_norm", None),
            "attended_norm": layer.post_attention_layernorm if post else None,
            "mlp_norm": before_mlp,
            "down_norm": layer.post_feedforward_layernorm if post else None,
        }
        self._norms = {name: _norm(module) for name, module in norms.items() if module is not None}
        self._epsilon = _epsilon(layer.input_layernorm)
        self._structure = Layer(
            qkv=self._qkv.structure,
            attended=self._attended.structure,
            gate_up=self._gate_up.structure,
            down=self._down.structure,
            shape=Shape(
                heads=self._sizes[0] // self._width,
                window=self._window or 0,
                scale=attention.scaling,
            ),
            width=self._attended.outputs,
            activation=self._activation,
            epsilon=self._epsilon,
            **{name: weight.data_ptr() for name, weight in self._norms.items()},
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        pack: Step,
        **__: Any,
    ) -> torch.Tensor:
        """Runs the layer on `hidden_states`, `[1, rows, width]`, in place."""
        x = hidden_states[0]
        cosines, sines = (table[0].contiguous() for table in position_embeddings)
        if pack.adapted:
            self._run_adapted(pack, x, cosines, sines)
            return hidden_states
        items, count = pack.items(self._window)
        self._library.layer(
            address(self._structure),
            address(pack.caches[self._index]),
            items,
            count,
            x.data_ptr(),
            len(x),
            cosines.data_ptr(),
            sines.data_ptr(),
        )
        return hidden_states

    def _run_adapted(
        self, step: Step, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> None:
        """The same in parts, with what adapters add to each projection."""
        library = self._library
        normed = self._normalise("attention_norm", x)
        qkv = multiply(library, self._qkv, normed)
        for name, part in zip(_PROJECTIONS, qkv.split(self._sizes, dim=1), strict=True):
            self._add(f"self_attn.{name}", normed, part)
        heads = torch.empty(len(x), self._sizes[0])
        items, count = step.items(self._window)
        library.attend_rotary(
            address(self._structure),
            address(step.caches[self._index]),
            items,
            count,
            qkv.data_ptr(),
            len(x),
            cosines.data_ptr(),
            sines.data_ptr(),
            heads.data_ptr(),
        )
        attended = multiply(library, self._attended, heads)
        self._add("self_attn.o_proj", heads, attended)
        x += self._normalise("attended_norm", attended)
        normed = self._normalise("mlp_norm", x)
        gate_up = multiply(library, self._gate_up, normed)
        gate, up = gate_up.chunk(2, dim=1)
        self._add("mlp.gate_proj", normed, gate)
        self._add("mlp.up_proj", normed, up)
        hidden = torch.empty(len(x), gate.shape[1])
        library.gate(gate_up.data_ptr(), len(x), gate.shape[1], self._activation, hidden.data_ptr())
        down = multiply(library, self._down, hidden)
        self._add("mlp.down_proj", hidden, down)
        x += self._normalise("down_norm", down)

    def _normalise(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._norms.get(name)
        if weight is None:
            return x
        y = torch.empty_like(x)
        self._library.rms_norm(
            x.data_ptr(), weight.data_ptr(), self._epsilon, *x.shape, y.data_ptr()
        )
        return y

    def _add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        target = self._targets.get(name)
        if target is not None:
            target.add_(x, y)


def is_known(layer: Any) -> bool:
    """Whether `CompiledLayer` computes what this layer does."""
    if type(layer).__name__ not in _LAYERS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    heads = attention.q_proj.weight.shape[0] // attention.head_dim
    kv_heads = attention.k_proj.weight.shape[0] // attention.head_dim
    return (
        attention.head_dim in HEAD_WIDTHS
        and heads % kv_heads == 0
        and heads // kv_heads <= MAX_GROUP
        and _activation(mlp) in ACTIVATIONS
        and mlp.gate_proj.bias is None
        and mlp.up_proj.bias is None
    )


def _activation(mlp: Any) -> str:
    config = mlp.config
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _window(attention: Any) -> int | None:
    # Mistral reads it from its settings at every call.
    owner = attention if hasattr(attention, "sliding_window") else attention.config
    window: int | None = getattr(owner, "sliding_window", None)
    return window


def _norm(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight.detach().float()
    # Gemma keeps what is to be added to 1.
    return (1 + weight if type(module).__name__.startswith("Gemma") else weight).contiguous()


def _epsilon(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", None) or module.eps)
