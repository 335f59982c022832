"""FLUX.1: CLIP's pooled state and T5, a transformer over packed latents, a rectified flow, distilled guidance (dev)."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dpo_core.families.base import Conditioning, Parts, Precision
from dpo_core.families.captions import States, clip_states, t5_states
from dpo_core.families.transformer import FlowFamily, LoadedFlow
from dpo_core.noising import Timesteps


class Flux(FlowFamily):
    """The FLUX.1 family (Black Forest Labs, 2024): dev and schnell."""

    kind: Literal["flux"] = "flux"
    guidance_scale: float = Field(default=1.0, ge=0)
    """Guidance that a guidance-distilled denoiser (dev) is told while it trains; schnell has no such input."""
    t5: bool = True
    """Whether captions are read by T5; without it the denoiser gets zeros in its place and knows of a caption only
    CLIP's pooled state, so it understands little of it. Exported pipelines keep T5, since diffusers needs it."""
    t5_max_length: int = Field(default=512, ge=1, le=512)
    """Tokens of a caption that T5 reads: 512 for dev, 256 for schnell."""

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> "LoadedFlux":
        """Load ``parts`` of the pipeline: the transformer in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold a FLUX pipeline.
        """
        return LoadedFlux(self, device, precision, parts)


class LoadedFlux(LoadedFlow):
    """A FLUX pipeline taken apart."""

    pipeline_type = "FluxPipeline"
    clip_names = ("text_encoder",)
    packing = 2

    def __init__(self, config: Flux, device: torch.device, precision: Precision, parts: Parts) -> None:
        super().__init__(config, device, precision, parts, () if config.t5 else ("text_encoder_2", "tokenizer_2"))
        self.guidance_scale = config.guidance_scale
        self.t5 = config.t5
        self.t5_shape = (1, config.t5_max_length, self.text_width)

    def encode(self, caption: str, *, remember: bool) -> Conditioning:
        """``text``: T5's tokens, [1, tokens, width]. ``pooled``: CLIP's pooled state, [1, width]."""
        _, pooled = self.memory.recall("text_encoder", caption, self._clip, keep=remember)
        if not self.t5:
            text = pooled.new_zeros(self.t5_shape)
        else:
            (text,) = self.memory.recall("text_encoder_2", caption, self._t5)
        return {"text": text, "pooled": pooled}

    def _clip(self, caption: str) -> States:
        tokenizer = self.parts["tokenizer"]
        return clip_states(tokenizer, self.text_encoders[0], caption, tokenizer.model_max_length)

    def _t5(self, caption: str) -> States:
        return t5_states(self.parts["tokenizer_2"], self.parts["text_encoder_2"], caption, self.t5_shape[1])

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = noisy.new_full((len(noisy),), self.guidance_scale)
        packed = denoiser(
            hidden_states=pack(noisy),
            timestep=timesteps / self.noising.num_timesteps,
            guidance=guidance,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
            txt_ids=noisy.new_zeros(conditioning["text"].shape[1], 3),
            img_ids=positions(height, width, noisy.device),
        ).sample
        return unpack(packed, height, width)


def pack(latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n patches packed"]:
    """Squares of 2 x 2 latents become one token of 4 c channels (channel, then row, then column), row by row."""
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, (height // 2) * (width // 2), channels * 4)


def unpack(packed: Float[Tensor, "n patches packed"], height: int, width: int) -> Float[Tensor, "n c h w"]:
    """The inverse of ``pack`` for ``height`` x ``width`` squares."""
    n, _, channels = packed.shape
    squares = packed.reshape(n, height, width, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, channels // 4, height * 2, width * 2)


def positions(height: int, width: int, device: torch.device) -> Float[Tensor, "patches 3"]:
    """Zero, row and column of every square, row by row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(device, torch.float32)
