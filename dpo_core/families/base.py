"""What a model family is to the rest of the program."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dpo_core.embedded import resolve_model
from dpo_core.noising import Noising, Timesteps
from dpo_core.section import Section

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Parts = Literal["all", "no_text", "text"]
"""What is loaded of a model: everything, all but the text encoders (whose states are stored), or no more than those."""

Conditioning = dict[str, Tensor]
"""What a denoiser is told besides noisy latents and timesteps; the first dimension of every tensor is the image."""


class LoadedFamily(Protocol):
    """A family with its weights in memory. The denoiser is the network that is trained; the rest is frozen.

    The denoiser is loaded in float32 on the CPU and goes to the device with the policy; the rest is there already.
    """

    @property
    def denoiser(self) -> torch.nn.Module: ...

    @property
    def noising(self) -> Noising: ...

    @property
    def noise_up_to(self) -> float:
        """Share of the schedule below which the denoiser was trained: 1, but for a refiner."""
        ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the denoiser's layers that get an adapter unless others are asked for."""
        ...

    @property
    def text_encoders(self) -> tuple[torch.nn.Module, ...]:
        """Those that may get adapters of their own, in the order in which export writes them."""
        ...

    def encode_images(
        self, pixels: UInt8[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Mean and standard deviation of the VAE posterior, float32, not scaled."""
        ...

    def scale_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """From the VAE's space to the denoiser's."""
        ...

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """What ``predict`` needs of each caption and image, in order.

        ``geometry`` is, of each image: original height and width, top and left of the crop in the resized image, height
        and width of the crop. With ``remember`` captions are encoded without gradient and kept; otherwise they are
        encoded anew, with whatever gradient the caller's context allows.
        """
        ...

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        """One forward pass of ``denoiser`` (the policy or its reference)."""
        ...

    def export(self, folder: Path, dtype: torch.dtype, lora: bool) -> None:
        """Write what diffusers loads: a pipeline folder, or a LoRA file when ``lora``."""
        ...


class Family(Section):
    """Which pretrained model, and how its family works."""

    takes_image_prompts: ClassVar[bool] = False
    """Whether an IP-Adapter can be put into the denoiser."""
    has_clip: ClassVar[bool] = True
    """Whether captions are read by CLIP, whose encoders may get adapters of their own."""

    model: str = "embedded"
    """A diffusers folder, a hub id, or ``embedded``: the tiny model that ships with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """File variant of a hub model, such as fp16."""
    denoiser: str | None = None
    """Another folder or hub id whose denoiser policy and reference start from (the original scripts' unet_init)."""
    vae: str | None = None
    """Another folder or hub id whose autoencoder is used, such as one that is safe in half precision."""

    @property
    def source(self) -> str:
        """The folder or hub id that diffusers is asked for."""
        return resolve_model(self.model)

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> Any:
        """A ``LoadedFamily``: the denoiser in float32, the frozen encoders in ``precision``; what is not among
        ``parts`` is left out."""
        raise TypeError(f"{type(self).__name__} does not say how to load a model")


def weights_hash(modules: Iterable[torch.nn.Module]) -> str:
    """sha256 over names, shapes and float32 values of all weights: which model this really is."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
