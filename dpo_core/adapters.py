"""Low-rank adapters in a network: put in, switched off, started so that they change nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dpo_core.families.lora_files import ADAPTER

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention projections of CLIP's text encoder."""


def add_adapter(module: Any, targets: Sequence[str], *, rank: int, alpha: float, dora: bool) -> None:
    """Put adapters into the layers of ``module`` whose names end in ``targets``; only these are trainable then.

    Raises ValueError when there is no such layer.
    """
    from peft import LoraConfig

    module.requires_grad_(False)
    adapter = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian",
        target_modules=list(targets),
        use_dora=dora,
    )
    try:
        module.add_adapter(adapter, adapter_name=ADAPTER)
    except ValueError as error:
        raise ValueError(f"policy.targets: {list(targets)} fits no layer of the network: {error}") from error


@torch.no_grad()
def level_magnitudes(module: torch.nn.Module) -> None:
    """Set DoRA's magnitudes to the norms that the forward pass will divide them by, in the caller's precision context.

    Then the quotient is one, and the policy at step 0 is its reference to the last bit. peft's own start value is
    rounded otherwise than its forward pass, in which a linear layer's weight is taken to float32.
    """
    from peft.tuners.lora import LoraLayer

    for layer in module.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
            dora: Any = layer.lora_magnitude_vector[ADAPTER]
            weight: Any = layer.get_base_layer().weight
            weight = weight.float() if weight.ndim == 2 else weight
            change = dora.get_lora_weight(lora_A=layer.lora_A[ADAPTER], lora_B=layer.lora_B[ADAPTER])
            change = change.to(weight.dtype).reshape(weight.shape)
            dora.weight.data = dora.get_weight_norm(weight, change, layer.scaling[ADAPTER]).float()


@contextmanager
def adapters_off(module: Any) -> Iterator[None]:
    """``module`` as it was before it got adapters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.disable_adapters()
    for parameter in trained:  # peft freezes them meanwhile, which sharding would take to be for good
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        module.enable_adapters()
