"""Which autoencoder made, or would make, the latents of a family."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.auto_model import AutoModel

from dpo_core.data.plan import Plan
from dpo_core.families.base import Family, weights_hash


def encoder_hash(family: Family) -> str:
    """Hash of the float32 weights of the family's autoencoder; the precision it will run in does not matter.

    Raises ValueError when the model has none.
    """
    try:
        vae = AutoModel.from_pretrained(
            family.source,
            subfolder="vae",
            revision=family.revision,
            variant=family.variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"family.model: the autoencoder of {family.model!r} cannot be loaded: {error}") from error
    assert isinstance(vae, torch.nn.Module)
    return weights_hash([vae])


def latent_shape(family: Family, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of square images, from the autoencoder's config alone.

    Raises ValueError when the model has no autoencoder.
    """
    try:
        config: Any = AutoencoderKL.load_config(family.source, subfolder="vae", revision=family.revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"family.model: the autoencoder of {family.model!r} cannot be found: {error}") from error
    side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
    return config["latent_channels"], side, side


def check_encoder(plan: Plan, family: Family) -> None:
    """Raise ValueError when ``plan`` holds latents of another autoencoder than ``family`` has; images always pass."""
    if plan.cache is None:
        return
    encoder = encoder_hash(family)
    if encoder != plan.cache.encoder:
        raise ValueError(
            f"the latents were encoded by the autoencoder of {plan.cache.model!r} ({plan.cache.encoder[:12]}), but "
            f"family.model={family.model!r} has another one ({encoder[:12]}); run `palate prepare` with this model "
            "into a new folder, or train the model that the latents were made for"
        )
