"""The autoencoder of a family: pixels in, the posterior of the latents out."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dpo_core.families.base import DTYPES, Family, Precision
from dpo_core.families.pipeline import load_part, quiet_libraries, wrong_model


class ImageEncoder:
    """An autoencoder on a device; all of a family that `palate prepare` needs."""

    def __init__(self, vae: Any, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.dtype = vae_dtype(vae, precision)  # diffusers looks through all of the network to tell it
        self.vae = vae.to(device, self.dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def encode_images(
        self, pixels: UInt8[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Mean and standard deviation of the posterior, float32, not scaled.

        Each image is encoded alone: in a batch it would round differently with the batch it is in, and neither would a
        cache hold what training on the images sees, nor a resumed run repeat the uninterrupted one.
        """
        # In one order of memory, or the bits would depend on where the pixels came from.
        images = pixels.to(self.device).contiguous().float().div_(127.5).sub_(1.0).to(self.dtype)
        posteriors = [self.vae.encode(image).latent_dist for image in images.split(1)]
        mean, std = (torch.cat([getattr(each, name) for each in posteriors]) for name in ("mean", "std"))
        return mean.float(), std.float()


def load_encoder(family: Family, device: torch.device, precision: Precision) -> ImageEncoder:
    """The family's autoencoder alone, without its denoiser. Raises ValueError when it cannot be loaded."""
    return ImageEncoder(load_vae(family), device, precision)


def check_channels(family: Family, vae: Any, reads: int) -> None:
    """Raise ValueError when ``vae`` makes latents of other than the ``reads`` channels that the denoiser takes."""
    makes = vae.config.latent_channels
    if makes != reads:
        field = next((name for name in ("vae", "denoiser") if getattr(family, name) is not None), "model")
        raise ValueError(
            f"family.{field}: {getattr(family, field)!r} does not fit: the autoencoder makes latents of {makes} "
            f"channels, the denoiser takes {reads}"
        )


def vae_dtype(vae: Any, precision: Precision) -> torch.dtype:
    """``precision``, but float32 instead of fp16 for an autoencoder whose own config asks for it.

    SDXL's overflows in half precision. The class's default asks for it too, but only what the file says counts.
    """
    said = vae.config.force_upcast and "force_upcast" not in vae.config.get("_use_default_values", ())
    return torch.float32 if precision == "fp16" and said else DTYPES[precision]


def load_vae(family: Family) -> Any:
    """The family's autoencoder in float32, on the CPU. Raises ValueError when it cannot be loaded."""
    from diffusers.models.auto_model import AutoModel

    if family.vae is not None:
        return load_part("vae", "vae", family.vae, torch.float32)
    quiet_libraries()
    try:
        return AutoModel.from_pretrained(
            family.source,
            subfolder="vae",
            revision=family.revision,
            variant=family.variant,
            dtype=torch.float32,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise wrong_model(family, f"has no autoencoder that can be loaded: {error}") from error


def load_vae_config(family: Family) -> dict[str, Any]:
    """``config.json`` of the family's autoencoder, no weights. Raises ValueError when it cannot be found."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    places = [(family.source, "vae")] if family.vae is None else [(family.vae, "vae"), (family.vae, None)]
    problem: Exception | None = None
    for source, subfolder in places:
        try:
            revision = family.revision if family.vae is None else None
            found: Any = AutoencoderKL.load_config(source, subfolder=subfolder, revision=revision)
            return dict(found)
        except (OSError, ValueError) as error:
            problem = problem or error
    if family.vae is not None:
        raise ValueError(f"family.vae: {family.vae!r} has no autoencoder: {problem}")
    raise wrong_model(family, f"has no autoencoder: {problem}")
