"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, epsilon- or v-prediction."""

from pathlib import Path
from typing import Literal

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers.utils import logging as transformers_logging

from dpo_core.families.base import DTYPES, Conditioning, Family, Precision
from dpo_core.noising import Timesteps, noising_of


class SD15(Family):
    """The Stable Diffusion 1.x / 2.x family (Rombach et al., arXiv 2112.10752)."""

    kind: Literal["sd15"] = "sd15"

    def load(self, device: torch.device, precision: Precision) -> "LoadedSD15":
        """Load the pipeline's parts: the U-Net in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold a Stable Diffusion pipeline.
        """
        return LoadedSD15(self, device, precision)


class LoadedSD15:
    """A Stable Diffusion pipeline taken apart."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: SD15, device: torch.device, precision: Precision) -> None:
        pipeline = load_pipeline(config, torch.float32)
        self.config = config
        self.device = device
        self.denoiser = pipeline.unet.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.vae = pipeline.vae.to(device, DTYPES[precision]).requires_grad_(False).eval()
        self.text_encoder = pipeline.text_encoder.to(device, DTYPES[precision]).requires_grad_(False).eval()
        self.tokenizer = pipeline.tokenizer
        self.text_encoders = (self.text_encoder,)
        self.noising = noising_of(dict(pipeline.scheduler.config))
        self._text: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode_images(
        self, pixels: UInt8[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        images = pixels.to(self.device).float().div_(127.5).sub_(1.0)
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def scale_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return latents * self.vae.config.scaling_factor

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """``text``: the last hidden state after the final norm, [n, tokens, width].

        Each caption is encoded alone and remembered: batched encoding rounds differently with the batch it is in,
        so a resumed run would not repeat the uninterrupted one bit for bit.
        """
        del geometry
        if not remember:
            return {"text": torch.cat([self._encode(caption) for caption in captions])}
        with torch.no_grad():
            for caption in captions:
                if caption not in self._text:
                    self._text[caption] = self._encode(caption)
        return {"text": torch.cat([self._text[caption] for caption in captions])}

    def _encode(self, caption: str) -> Float[Tensor, "1 tokens width"]:
        tokens = self.tokenizer(
            caption,
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        return denoiser(noisy, timesteps, encoder_hidden_states=conditioning["text"]).sample

    def export(self, folder: Path, dtype: torch.dtype, lora: bool) -> None:
        if lora:
            from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
            from peft.utils import get_peft_model_state_dict

            state = get_peft_model_state_dict(self.denoiser)
            layers = convert_state_dict_to_diffusers({name: tensor.to(dtype) for name, tensor in state.items()})
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
            return
        fresh = load_pipeline(self.config, dtype)
        fresh.unet.load_state_dict(self.denoiser.state_dict())
        fresh.save_pretrained(folder, safe_serialization=True)


def load_pipeline(config: SD15, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The whole pipeline behind ``config.model``; ValueError when there is none."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        return StableDiffusionPipeline.from_pretrained(
            config.source,
            revision=config.revision,
            variant=config.variant,
            safety_checker=None,
            requires_safety_checker=False,
            dtype=dtype,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"family.model: {config.model!r} cannot be loaded as a Stable Diffusion pipeline: {error}. "
            "Allowed: a diffusers folder with safetensors weights, a hub id, or 'embedded'."
        ) from error
