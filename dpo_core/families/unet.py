"""What the U-Net families share: loading, images, captions, adapters, export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dpo_core.families.autoencoder import ImageEncoder, check_channels
from dpo_core.families.base import DTYPES, Conditioning, Family, Parts, Precision
from dpo_core.families.captions import CaptionMemory, States
from dpo_core.families.ip_adapter import ImagePrompt, IPAdapterSection
from dpo_core.families.lora_files import LoraPart, write_lora
from dpo_core.families.pipeline import left_out, load_pipeline
from dpo_core.noising import Timesteps, noising_of


class UNetFamily(Family):
    """A family whose denoiser is a U-Net that predicts the noise, or v."""

    takes_image_prompts: ClassVar[bool] = True

    zero_terminal_snr: bool | None = None
    """Whether the last timestep is pure noise (arXiv 2305.08891), as the turbo models were trained; null takes it from
    the model's scheduler."""


class LoadedUNet:
    """A pipeline taken apart. Subclasses say how a caption is encoded, and what else the U-Net is told."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    noise_up_to: float = 1.0
    kohya: ClassVar[dict[str, str]]
    """Prefixes of kohya's names for the layers of the pipeline's parts, text encoders in the order of the pipeline."""

    def __init__(
        self,
        pipeline_type: str,
        config: UNetFamily,
        device: torch.device,
        precision: Precision,
        parts: Parts,
        without: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        """Load ``parts``: the U-Net and the autoencoder in float32, the rest in ``precision``; never ``without``.

        Raises ValueError when the folder or hub id does not hold such a pipeline.
        """
        dtypes = {"unet": torch.float32, "vae": torch.float32, "default": DTYPES[precision]}
        absent = (*without, *left_out(config, "unet", parts))
        pipeline = load_pipeline(pipeline_type, config, "unet", dtypes, absent, **settings)
        self.reload: Callable[[torch.dtype], Any] = lambda dtype: load_pipeline(
            pipeline_type, config, "unet", dtype, without, **settings
        )
        self.config = config
        self.device = device
        self.parts: dict[str, Any] = dict(pipeline.components)
        self.text_names = tuple(name for name in self.kohya if name != "unet" and self.parts[name] is not None)
        if parts != "text":
            if parts == "all":
                self._check_fit()
            check_channels(config, self.parts["vae"], self.parts["unet"].config.in_channels)
            self.denoiser = self.parts["unet"].to(memory_format=torch.channels_last).requires_grad_(False).eval()
            self.images = ImageEncoder(self.parts["vae"], device, precision)
        self.text_encoders = tuple(self.parts[name].to(device).requires_grad_(False).eval() for name in self.text_names)
        self.noising = noising_of(dict(pipeline.scheduler.config), zero_terminal_snr=config.zero_terminal_snr)
        self.memory = CaptionMemory(device)
        self.image_prompt: ImagePrompt | None = None

    def _check_fit(self) -> None:
        """Raise ValueError when the U-Net, which may come from another folder, reads other captions than it gets."""
        unet = self.parts["unet"].config
        width = sum(self.parts[name].config.hidden_size for name in self.text_names)
        told = "text_time" if "text_encoder_2" in self.kohya else None
        if (unet.cross_attention_dim, unet.addition_embed_type) != (width, told):
            raise ValueError(
                f"family.denoiser: the U-Net of {self.config.denoiser or self.config.model!r} (cross_attention_dim "
                f"{unet.cross_attention_dim}, addition_embed_type {unet.addition_embed_type}) is not one for "
                f"{self.config.model!r} ({width}, {told})"
            )

    def encode_images(
        self, pixels: UInt8[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        return self.images.encode_images(pixels)

    def scale_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return latents * self.images.vae.config.scaling_factor

    def encode_captions(self, captions: list[str], remember: bool) -> States:
        """The states of each caption, first dimension the caption.

        Each is encoded alone: batched encoding rounds differently with the batch it is in, so a resumed run would not
        repeat the uninterrupted one bit for bit. A caption that comes twice is encoded once.
        """
        states = {
            caption: self.memory.recall("text", caption, self.encode_caption, keep=remember)
            for caption in dict.fromkeys(captions)
        }
        return tuple(torch.cat(parts) for parts in zip(*(states[caption] for caption in captions), strict=True))

    def encode_caption(self, caption: str) -> States:
        """The states of one caption, each with first dimension 1."""
        raise TypeError(f"{type(self).__name__} does not say how to encode a caption")

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """What ``predict`` needs of each caption and image, as in ``LoadedFamily``."""
        raise TypeError(f"{type(self).__name__} does not say what its U-Net is told")

    def add_image_prompt(self, section: IPAdapterSection, dtype: torch.dtype) -> None:
        """Put an IP-Adapter into the U-Net and make it the only trainable part; its image encoder runs in ``dtype``.

        Raises ValueError when it cannot be loaded or does not fit.
        """
        self.image_prompt = ImagePrompt(section, self.denoiser, self.device, dtype)

    def embed_images(self, images: UInt8[Tensor, "n 3 side side"]) -> Tensor:
        """What the U-Net is told of image prompts, first dimension the image."""
        assert self.image_prompt is not None, "this policy has no image prompt"
        return self.image_prompt.embed(images)

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        told: dict[str, Any] = {
            name: conditioning[name] for name in ("text_embeds", "time_ids") if name in conditioning
        }
        if "image" in conditioning:
            told["image_embeds"] = [conditioning["image"]]
        text = conditioning["text"]
        return denoiser(noisy, timesteps, encoder_hidden_states=text, added_cond_kwargs=told or None).sample

    def export(self, folder: Path, dtype: torch.dtype, lora: bool) -> None:
        if self.image_prompt is not None:
            self.image_prompt.write(folder, self.denoiser, dtype)
            return
        if lora:
            named = {"unet": self.denoiser} | dict(zip(self.text_names, self.text_encoders, strict=True))
            rename = {"unet": self.kohya_layer}
            write_lora(
                folder,
                [
                    LoraPart(module, name, self.kohya[name], rename.get(name, str))
                    for name, module in named.items()
                    if hasattr(module, "peft_config")
                ],
                dtype,
            )
            return
        fresh = self.reload(dtype)
        fresh.unet.load_state_dict(self.denoiser.state_dict())
        fresh.save_pretrained(folder, safe_serialization=True)

    def kohya_layer(self, layer: str) -> str:
        """The name that kohya's scripts have for a layer of the U-Net: diffusers' own, for the first generation."""
        return layer
