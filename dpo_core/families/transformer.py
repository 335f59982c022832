"""What diffusion transformers with a rectified flow share: loading, images, captions, export.

Another such model is one file: a ``FlowFamily`` with its ``kind``, and a ``LoadedFlow`` that names the pipeline,
encodes a caption and calls the denoiser.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from dpo_core.families.autoencoder import ImageEncoder, check_channels
from dpo_core.families.base import DTYPES, Conditioning, Family, Parts, Precision
from dpo_core.families.captions import CaptionMemory
from dpo_core.families.lora_files import LoraPart, write_lora
from dpo_core.families.pipeline import left_out, load_pipeline
from dpo_core.noising import Timesteps, flow_of

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of image and text in joint attention, as diffusers names them."""


class FlowFamily(Family):
    """A family whose denoiser is a transformer that predicts the velocity of a rectified flow."""

    shift: float | None = Field(default=None, gt=0)
    """How far noise levels are moved to high noise; null takes it from the model's scheduler, which may let it grow
    with the image (FLUX.1 dev). 1 moves nothing."""


class LoadedFlow:
    """A pipeline taken apart. Subclasses add ``pipeline_type``, ``encode`` and ``predict``."""

    pipeline_type: ClassVar[str]
    """The pipeline class of diffusers."""
    lora_targets: tuple[str, ...] = ATTENTION
    noise_up_to: float = 1.0
    clip_names: ClassVar[tuple[str, ...]] = ()
    """Text encoders that may get adapters of their own, by their names in the pipeline."""
    packing: ClassVar[int] = 1
    """Side of the squares of latents that are packed into channels before the denoiser cuts its own patches."""

    def __init__(
        self,
        config: FlowFamily,
        device: torch.device,
        precision: Precision,
        parts: Parts,
        without: tuple[str, ...] = (),
    ) -> None:
        """Load ``parts``: the denoiser and the autoencoder in float32, the rest in ``precision``; never ``without``.

        Raises ValueError when the folder or hub id does not hold such a pipeline.
        """
        dtypes = {"transformer": torch.float32, "vae": torch.float32, "default": DTYPES[precision]}
        absent = (*without, *left_out(config, "transformer", parts))
        pipeline = load_pipeline(self.pipeline_type, config, "transformer", dtypes, absent)
        self.config = config
        self.device = device
        self.parts: dict[str, Any] = dict(pipeline.components)
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module) and name not in ("vae", "transformer"):
                part.to(device).requires_grad_(False).eval()
        self.text_encoders = tuple(self.parts[name] for name in self.clip_names if self.parts[name] is not None)
        self.memory = CaptionMemory(device)
        self.text_width = 0  # nobody asks for it where only captions are encoded
        if parts != "text":
            self.images = ImageEncoder(self.parts["vae"], device, precision)
            channels = self.parts["transformer"].config.in_channels // self.packing**2
            check_channels(config, self.parts["vae"], channels)
            self.denoiser = self.parts["transformer"].requires_grad_(False).eval()
            self.text_width = self.denoiser.config.joint_attention_dim
            self.patch = self.packing * self.denoiser.config.patch_size
            self.noising = flow_of(dict(pipeline.scheduler.config), patch=self.patch, shift=config.shift)

    def encode_images(
        self, pixels: UInt8[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        return self.images.encode_images(pixels)

    def scale_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """(latents - shift_factor) * scaling_factor of the autoencoder's config.

        Raises ValueError when latents of this size cannot be cut into the denoiser's patches.
        """
        vae, (height, width) = self.images.vae.config, latents.shape[-2:]
        if height % self.patch or width % self.patch:
            side = self.patch * 2 ** (len(vae.block_out_channels) - 1)
            raise ValueError(
                f"data.resolution: latents of {height} x {width} cannot be cut into patches of {self.patch} x "
                f"{self.patch}; this model needs sides that are multiples of {side} pixels"
            )
        return (latents - (vae.shift_factor or 0.0)) * vae.scaling_factor

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """What ``encode`` makes of each caption, one by one, so that no caption's bits depend on its batch."""
        del geometry
        rows = {caption: self.encode(caption, remember=remember) for caption in dict.fromkeys(captions)}
        return {name: torch.cat([rows[caption][name] for caption in captions]) for name in rows[captions[0]]}

    def encode(self, caption: str, *, remember: bool) -> Conditioning:
        """The conditioning of one caption, first dimension 1; what ``remember`` says holds for the CLIP encoders."""
        raise TypeError(f"{type(self).__name__} does not say how to encode a caption")

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        """The velocity that ``denoiser`` predicts."""
        raise TypeError(f"{type(self).__name__} does not say how to call its denoiser")

    def export(self, folder: Path, dtype: torch.dtype, lora: bool) -> None:
        if lora:
            named = {"transformer": self.denoiser} | {name: self.parts[name] for name in self.clip_names}
            adapted = [LoraPart(module, name) for name, module in named.items() if hasattr(module, "peft_config")]
            write_lora(folder, adapted, dtype)
            return
        fresh = load_pipeline(self.pipeline_type, self.config, "transformer", dtype)
        fresh.transformer.load_state_dict(self.denoiser.state_dict())
        fresh.save_pretrained(folder, safe_serialization=True)
