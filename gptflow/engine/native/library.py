"""The kernels as Python sees them: C structures, and functions that take addresses."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, ClassVar

import torch

from gptflow.engine.native.build import Unavailable, build

__all__ = ["Cache", "Item", "Layer", "Library", "Linear", "Shape", "Unavailable", "load"]

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1}
"""The gated activations that are compiled, by transformers' names."""

HEAD_WIDTHS = frozenset({16, 32, 48, 64, 80, 96, 128, 256})
"""Numbers per attention head that are compiled."""

MAX_GROUP = 64
"""Most query heads that may share a key-value head."""


class Linear(Structure):
    _fields_: ClassVar[Any] = [
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("gated", c_int32),
        ("format", c_int32),
    ]


class Item(Structure):
    """Some rows of one sequence; see attention.h."""

    _fields_: ClassVar[Any] = [
        ("row", c_int32),
        ("rows", c_int32),
        ("slot", c_int32),
        ("start", c_int32),
        ("mask", c_void_p),
        ("mask_stride", c_int64),
    ]


class Cache(Structure):
    """One layer's keys and values."""

    _fields_: ClassVar[Any] = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("length", c_int64),
        ("kv_heads", c_int32),
        ("width", c_int32),
        ("half", c_int32),
    ]


class Shape(Structure):
    _fields_: ClassVar[Any] = [("heads", c_int32), ("window", c_int32), ("scale", c_float)]


class Layer(Structure):
    _fields_: ClassVar[Any] = [
        ("qkv", Linear),
        ("attended", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("shape", Shape),
        ("width", c_int32),
        ("activation", c_int32),
        ("epsilon", c_float),
        ("attention_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("attended_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("down_norm", c_void_p),
    ]


class Matrices(Structure):
    """One adapter's matrices; see adapt.h."""

    _fields_: ClassVar[Any] = [("a", c_void_p), ("b", c_void_p), ("rank", c_int32)]


_ITEMS = POINTER(Item)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "gf_packed_size": (c_int64, [c_int32, c_int32, c_int32, c_int32]),
    "gf_pack": (None, [c_void_p, c_void_p, c_int32, c_int32, c_int32, c_void_p]),
    "gf_on_grid": (c_int32, [c_void_p, c_int32, c_int32]),
    "gf_rms_norm": (None, [c_void_p, c_void_p, c_float, c_int32, c_int32, c_void_p]),
    "gf_linear": (None, [c_void_p, c_void_p, c_int32, c_int32, c_void_p]),
    "gf_summarize": (
        None,
        [c_void_p, c_int32, c_int32, c_int64, c_void_p, c_void_p, c_void_p],
    ),
    "gf_adapt": (
        None,
        [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32, c_void_p, POINTER(Matrices)]
        + [c_int32] * 4,
    ),
    "gf_gate": (None, [c_void_p, c_int32, c_int32, c_int32, c_void_p]),
    "gf_attend_rotary": (
        c_int32,
        [c_void_p, c_void_p, _ITEMS, c_int32, c_void_p, c_int32, c_void_p, c_void_p, c_void_p],
    ),
    "gf_layer": (
        c_int32,
        [c_void_p, c_void_p, _ITEMS, c_int32, c_void_p, c_int32, c_void_p, c_void_p],
    ),
    "gf_attend": (
        c_int32,
        [c_void_p, c_void_p, _ITEMS, c_int32, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
}


class Library:
    """The compiled functions, under their names without `gf_`. Tensors go in by address."""

    def __init__(self, path: str) -> None:
        try:
            loaded = ctypes.CDLL(path)
        except OSError as error:
            raise Unavailable(f"the compiled kernels do not load: {error}") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("gf_"), function)

    def __getattr__(self, name: str) -> Any:  # only for what __init__ has not set
        raise AttributeError(f"there is no kernel {name!r}")


@cache
def load() -> Library:
    """The kernels of this machine, compiled if need be.

    Raises:
        Unavailable: they cannot be had here; the message says why.
    """
    if not torch.cpu._is_vnni_supported():
        raise Unavailable("the processor has no AVX-512 with VNNI")
    return Library(str(build()))


def address(structure: Structure) -> Any:
    """What a function takes for a pointer to a structure."""
    return byref(structure)
