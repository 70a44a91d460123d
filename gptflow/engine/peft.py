"""PEFT's file format for LoRA, read without PEFT.

`adapter_config.json` says which modules have matrices and how they are scaled;
`adapter_model.safetensors` holds them as `base_model.model.MODULE.lora_A.weight [rank, fan in]`
and `.lora_B.weight [fan out, rank]`. What would change the model in any other way is refused:
an adapter that is served in part answers wrongly without anybody noticing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from gptflow.engine.lora_weights import LoRAWeights, Projection
from gptflow.errors import AdapterCorrupt, AdapterMismatch

_PREFIX = "base_model.model."
_KEY = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# Settings that are read below, that only matter while training, or that only tell where the
# adapter comes from. Any other that is set is something that the engine does not do.
_READ = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "peft_type",
    "bias", "init_lora_weights",
}  # fmt: skip
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "velora_config",
}  # fmt: skip

# Ways to initialise that change the base model's own weights too.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")

_HINT = "Train it with plain LoRA on the projections: bias none, no DoRA, no extra modules."


@dataclasses.dataclass(frozen=True, slots=True)
class PeftAdapter:
    """What a PEFT folder holds.

    Attributes:
        saved: weights of modules that were trained in full, by their name in the file.
    """

    lora: LoRAWeights
    saved: Mapping[str, torch.Tensor]


def read(
    name: str,
    key: str,
    config_json: bytes,
    tensors: Mapping[str, torch.Tensor],
    projections: Mapping[str, Projection],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> PeftAdapter:
    """Check a PEFT adapter against a model and lay its matrices out for the engine.

    Args:
        name: what messages call the adapter.
        key: SHA-256 of its files.
        tensors: of its weights file.
        projections: of the model.
        dtype: to keep the matrices in.

    Raises:
        AdapterCorrupt: the files contradict each other or hold something that is no number.
        AdapterMismatch: it was made for another model, or changes more than projections.
    """
    config = _config(name, config_json)
    pairs, saved = _sort(name, tensors)
    _check_names(name, config, pairs, saved, projections)
    groups: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    ranks = {module: pair["A"].shape[0] for module, pair in pairs.items()}
    counts: dict[str, int] = {}
    for projection in projections.values():
        counts[projection.group] = max(counts.get(projection.group, 0), projection.index + 1)
    for module, pair in pairs.items():
        projection = projections[module]
        scale = _scale(name, config, module, ranks[module])
        _check_shapes(name, pair, projection)
        if projection.group not in groups:
            rank = max(r for m, r in ranks.items() if projections[m].group == projection.group)
            count = counts[projection.group]
            groups[projection.group] = (
                torch.zeros(count, rank, projection.fan_in, dtype=dtype, device=device),
                torch.zeros(count, rank, projection.fan_out, dtype=dtype, device=device),
            )
        a, b = groups[projection.group]
        a[projection.index, : ranks[module]] = pair["A"]
        b[projection.index, : ranks[module]] = pair["B"].float().T * scale
    lora = LoRAWeights(key, max(ranks.values()), groups)
    if not all(part.isfinite().all() for pair in groups.values() for part in pair):
        raise AdapterCorrupt(f"Adapter {name!r}: a weight is too large for {dtype}.")
    return PeftAdapter(lora, saved)


def check_numbers(name: str, file: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse what is not a floating-point number, or not a number at all.

    Raises:
        AdapterCorrupt: naming the tensor.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise AdapterCorrupt(f"Adapter {name!r}: {key} in {file} is of type {kind}.")
        if not tensor.isfinite().all():
            raise AdapterCorrupt(f"Adapter {name!r}: {key} in {file} holds a NaN or infinity.")


def _config(name: str, text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise AdapterCorrupt(f"Adapter {name!r}: adapter_config.json is not JSON.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterMismatch(f"Adapter {name!r} is not a LoRA adapter.", hint=_HINT)
    if config.get("bias", "none") != "none":
        raise AdapterMismatch(f"Adapter {name!r} changes biases.", hint=_HINT)
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise AdapterMismatch(
            f"Adapter {name!r} was initialised by {init}, which changed the base model too.",
            hint="Save it with PEFT's path_initial_model_for_weight_conversion.",
        )
    for setting, value in config.items():
        if setting not in _READ | _HARMLESS and value:
            raise AdapterMismatch(f"Adapter {name!r} sets {setting}, not served.", hint=_HINT)
    for setting, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(config.get(setting), kind) or not config[setting] > 0:
            raise AdapterCorrupt(f"Adapter {name!r}: {setting} is not a positive number.")
    for setting in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(setting) or {}, dict):
            raise AdapterCorrupt(f"Adapter {name!r}: {setting} is not a mapping.")
    if not config.get("target_modules"):
        raise AdapterCorrupt(f"Adapter {name!r}: target_modules is empty.")
    return config


def _sort(
    name: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The matrices by module, and what else there is."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        bare = key.removeprefix(_PREFIX)
        match = _KEY.fullmatch(bare)
        if match is None:
            saved[bare] = tensor
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in pairs.items():
        if len(pair) != 2:
            raise AdapterCorrupt(f"Adapter {name!r}: {module} has one of lora_A and lora_B only.")
    if not pairs:
        raise AdapterCorrupt(f"Adapter {name!r}: adapter_model.safetensors holds no LoRA matrices.")
    return pairs, saved


def _check_names(
    name: str,
    config: Mapping[str, Any],
    pairs: Mapping[str, Any],
    saved: Mapping[str, torch.Tensor],
    projections: Mapping[str, Projection],
) -> None:
    strange = sorted(set(pairs) - set(projections))
    if strange:
        raise AdapterMismatch(
            f"Adapter {name!r} has weights for {strange[0]}, which the model does not have.",
            hint=f"It has such as {', '.join(list(projections)[:3])}.",
        )
    try:
        wanted = {module for module in projections if _targets(config, module)}
    except (re.error, TypeError, AttributeError) as error:
        raise AdapterCorrupt(f"Adapter {name!r}: target_modules is malformed: {error}.") from error
    for modules, what in (
        (wanted - set(pairs), "lacks the weights of {}"),
        (set(pairs) - wanted, "has weights for {}, which its target_modules do not name"),
    ):
        if modules:
            raise AdapterCorrupt(f"Adapter {name!r} {what.format(min(modules))}.")
    to_save = config.get("modules_to_save") or ()
    for key in saved:
        if key.rpartition(".")[0] not in to_save:
            raise AdapterMismatch(f"Adapter {name!r} replaces {key}, not served.", hint=_HINT)


def _targets(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT puts matrices on a module."""
    exclude = config.get("exclude_modules") or ()
    if _named(exclude, module):
        return False
    targets = config["target_modules"]
    if targets == "all-linear":
        return True
    if not _named(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _named(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _scale(name: str, config: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product of the matrices is multiplied by."""
    try:
        expected = _pattern(config.get("rank_pattern"), module, config["r"])
        alpha = float(_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    except (re.error, TypeError, ValueError) as error:
        raise AdapterCorrupt(f"Adapter {name!r}: a pattern is malformed: {error}.") from error
    if rank != expected:
        raise AdapterCorrupt(
            f"Adapter {name!r}: {module} has rank {rank}; its configuration says {expected}."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_shapes(name: str, pair: Mapping[str, torch.Tensor], projection: Projection) -> None:
    for which, width, at in (("A", projection.fan_in, 1), ("B", projection.fan_out, 0)):
        shape = tuple(pair[which].shape)
        if len(shape) != 2 or shape[at] != width or shape[1 - at] != pair["A"].shape[0]:
            raise AdapterMismatch(
                f"Adapter {name!r}: lora_{which} of {projection.name} has the shape "
                f"{list(shape)}; the layer is {projection.fan_in} to {projection.fan_out} wide.",
                hint="Serve it with the model that it was trained on.",
            )
