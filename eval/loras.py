"""LoRAs: laid on a pipeline, all of one or nothing."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LORA_FILE = "pytorch_lora_weights.safetensors"
DENOISERS = ("unet", "transformer")


def lay_on(pipeline: Any, lora: str | Path, scale: float = 1.0) -> None:
    """Add ``scale`` times a LoRA (a file, a folder with one, or a hub id) to the weights of ``pipeline``.

    Raises ValueError if it cannot be read, or if any of its layers is not in the pipeline: the library only logs that,
    and a comparison would then hold a model against itself.
    """
    path = Path(lora)
    options = {"weight_name": path.name} if path.is_file() else {}
    options = {"weight_name": LORA_FILE} if (path / LORA_FILE).is_file() else options
    place = str(path.parent if path.is_file() else lora)
    try:
        read: Any = pipeline.lora_state_dict(place, **options)
        pipeline.load_lora_weights(place, **options)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ValueError(f"cannot lay the LoRA {str(lora)!r} on a {type(pipeline).__name__}: {reason}") from error
    state: Mapping[str, torch.Tensor] = read[0] if isinstance(read, tuple) else read
    parts = pipeline._lora_loadable_modules
    if not any(name.partition(".")[0] in parts for name in state):
        raise ValueError(
            f"the LoRA {str(lora)!r} has nothing for this {type(pipeline).__name__}: its first tensor is {min(state)}; "
            f"allowed: names that begin with one of {', '.join(parts)}"
        )
    layers = _layers(state)
    if lost := sorted(layers - _laid(pipeline)):
        raise ValueError(
            f"the LoRA {str(lora)!r} does not fit this {type(pipeline).__name__}: {len(lost)} of its {len(layers)} "
            f"layers are not in it, first {lost[0]}"
        )
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def lora_name(lora: str) -> str:
    """Names the exact LoRA: the first 16 digits of its file's sha256, or its hub id."""
    path = Path(lora)
    file = path if path.is_file() else path / LORA_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else lora


def _layers(state: Mapping[str, torch.Tensor]) -> set[str]:
    """The layers of a denoiser that a LoRA changes, named as the library names them when it loads one."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    found = set()
    for part in DENOISERS:
        mine = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        if mine and not any(".lora_A." in name for name in mine):
            mine = convert_unet_state_dict_to_peft(mine)
        found |= {f"{part}.{name.partition('.lora_A.')[0]}" for name in mine if ".lora_A." in name}
    return found


def _laid(pipeline: Any) -> set[str]:
    """The layers of the denoiser that hold a LoRA now."""
    return {
        f"{part}.{name.partition('.lora_A.')[0]}"
        for part in DENOISERS
        if getattr(pipeline, part, None) is not None
        for name, _ in getattr(pipeline, part).named_parameters()
        if ".lora_A." in name
    }
