"""Which autoencoder made, or would make, the latents of a family."""

from dpo_core.data.plan import Plan
from dpo_core.families.autoencoder import load_vae, load_vae_config
from dpo_core.families.base import Family, weights_hash


def encoder_hash(family: Family) -> str:
    """Hash of the float32 weights of the family's autoencoder; the precision it will run in does not matter.

    Raises ValueError when the model has none.
    """
    return weights_hash([load_vae(family)])


def latent_shape(family: Family, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of square images, from the autoencoder's config alone.

    Raises ValueError when the model has no autoencoder.
    """
    config = load_vae_config(family)
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
