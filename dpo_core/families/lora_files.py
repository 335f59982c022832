"""Adapters as files: one that diffusers loads, and one for ComfyUI, kohya's scripts and what else reads their names."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

ADAPTER = "default"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""diffusers looks for this name first, so the folder itself can be given to ``load_lora_weights``."""
COMFY_FILE = "pytorch_lora_weights_comfy.safetensors"


@dataclass(frozen=True)
class LoraPart:
    """One network of a pipeline whose adapters go into the files."""

    module: torch.nn.Module
    """The network, with a peft adapter in place."""
    name: str
    """What the pipeline calls it: unet, transformer, text_encoder, text_encoder_2."""
    kohya: str | None = None
    """The prefix of its layers in kohya's names, such as lora_unet or lora_te1; null keeps diffusers' names."""
    rename: Callable[[str], str] = str
    """From a layer's name in the module to its name in the network that kohya's scripts know."""


def write_lora(folder: Path, parts: Sequence[LoraPart], dtype: torch.dtype) -> None:
    """Write both files into ``folder``, weights in ``dtype``.

    An adapter adds alpha / rank * up @ down to a weight, and a reader that is not told alpha takes it to be the rank.
    So alpha stands in the metadata of the diffusers file, where diffusers reads it. The other file has alpha / rank
    multiplied into its weights and says alpha = rank: any reader is right, whether it looks or not.
    """
    layers: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    comfy: dict[str, Tensor] = {}
    for part in parts:
        state, config = adapter_state(part.module), adapter_config(part.module)
        layers |= {f"{part.name}.{name}": tensor.to(dtype) for name, tensor in state.items()}
        metadata |= {f"{part.name}.{name}": value for name, value in config.items()}
        comfy |= comfy_state(part, state, config["lora_alpha"], dtype)
    text = json.dumps(metadata, sort_keys=True)
    save_file(layers, folder / DIFFUSERS_FILE, metadata={"format": "pt", "lora_adapter_metadata": text})
    save_file(comfy, folder / COMFY_FILE, metadata={"format": "pt"})


def adapter_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by peft's names without the adapter's own: ``layer.lora_A.weight``; float32 on the CPU.

    CLIP's layers stand under ``text_model.`` whatever the version of transformers: so every file has them.
    """
    from peft.utils.save_and_load import get_peft_model_state_dict

    state = get_peft_model_state_dict(module, adapter_name=ADAPTER, save_embedding_layers=False)
    stem = "text_model." if any(name.startswith("encoder.layers.") for name in state) else ""
    return {f"{stem}{name}": tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}


def adapter_config(module: torch.nn.Module) -> dict[str, Any]:
    """What peft must be told to make the adapter again; no more, since other versions refuse fields unknown to them."""
    configs: Any = module.peft_config
    config = configs[ADAPTER]
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "use_dora": config.use_dora,
    }


def comfy_state(part: LoraPart, state: dict[str, Tensor], alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """``state`` with alpha / rank in the weights, under kohya's names (or diffusers' where ``part.kohya`` is null)."""
    down, up = ("lora_down", "lora_up") if part.kohya else ("lora_A", "lora_B")
    converted: dict[str, Tensor] = {}
    for name, first in state.items():
        layer, found, _ = name.partition(".lora_A.")
        if not found:
            continue
        second = state[f"{layer}.lora_B.weight"]
        rank = first.shape[0]
        key = f"{part.kohya}_{part.rename(layer).replace('.', '_')}" if part.kohya else f"{part.name}.{layer}"
        converted[f"{key}.{down}.weight"] = first.to(dtype)
        converted[f"{key}.{up}.weight"] = (second * (alpha / rank)).to(dtype)
        converted[f"{key}.alpha"] = torch.tensor(float(rank))
        if f"{layer}.lora_magnitude_vector" in state:
            scale = comfy_magnitude(part.module, layer)
            converted[f"{key}.dora_scale"] = scale.reshape(-1, *(1 for _ in first.shape[1:])).to(dtype)
    return converted


@torch.no_grad()
def comfy_magnitude(module: torch.nn.Module, layer: str) -> Float[Tensor, " outputs"]:
    """The ``dora_scale`` with which ComfyUI arrives at this layer's weights.

    DoRA's weight is magnitude (W + change) / |W + change|, row by row (arXiv 2402.09353, eq. 5). ComfyUI divides by |W|
    instead, so the magnitude is given times |W| / |W + change|. Readers that divide as the paper does are off by that
    factor; diffusers reads no ``dora_scale`` at all and has its own file.
    """
    names = dict(module.named_modules())
    lora: Any = names[layer if layer in names else layer.removeprefix("text_model.")]
    weight: Tensor = lora.get_base_layer().weight.float().cpu()
    first, second = (matrix[ADAPTER].weight.float().cpu().flatten(1) for matrix in (lora.lora_A, lora.lora_B))
    whole = weight + lora.scaling[ADAPTER] * (second @ first).view_as(weight)
    magnitude = lora.lora_magnitude_vector[ADAPTER].weight.float().cpu().flatten()
    return magnitude * weight.flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)
