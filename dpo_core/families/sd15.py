"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, epsilon- or v-prediction."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from dpo_core.families.base import Conditioning, Parts, Precision
from dpo_core.families.captions import States, tokens
from dpo_core.families.pipeline import read_index, wrong_model
from dpo_core.families.unet import LoadedUNet, UNetFamily


class SD15(UNetFamily):
    """The Stable Diffusion 1.x / 2.x family (Rombach et al., arXiv 2112.10752), SD-Turbo included."""

    kind: Literal["sd15"] = "sd15"

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> "LoadedSD15":
        """Load ``parts`` of the pipeline: the U-Net in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold a Stable Diffusion pipeline.
        """
        return LoadedSD15(self, device, precision, parts)


class LoadedSD15(LoadedUNet):
    """A Stable Diffusion pipeline taken apart."""

    kohya = {"unet": "lora_unet", "text_encoder": "lora_te"}

    def __init__(self, config: SD15, device: torch.device, precision: Precision, parts: Parts) -> None:
        if "text_encoder_2" in read_index(config):
            raise wrong_model(config, "has two text encoders: it is not of the family sd15")
        settings = {"without": ("safety_checker",), "requires_safety_checker": False}
        super().__init__("StableDiffusionPipeline", config, device, precision, parts, **settings)

    def encode_caption(self, caption: str) -> States:
        tokenizer, (encoder,) = self.parts["tokenizer"], self.text_encoders
        return (encoder(tokens(tokenizer, encoder, caption, tokenizer.model_max_length))[0],)

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """``text``: the last hidden state after the final norm, [n, tokens, width]."""
        del geometry
        return {"text": self.encode_captions(captions, remember)[0]}
