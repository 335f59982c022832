"""Stable Diffusion XL, base, refiner and turbo: two CLIP text encoders, a U-Net that is told sizes and crops."""

import re
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from dpo_core.families.base import Conditioning, Parts, Precision
from dpo_core.families.captions import States, clip_states
from dpo_core.families.pipeline import read_index, wrong_model
from dpo_core.families.unet import LoadedUNet, UNetFamily

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""What diffusers' pipeline tells the refiner of the image that is wanted, and of the one that is not."""
REFINER_NOISE = 0.2
"""The refiner was trained on the least noisy fifth of the schedule (arXiv 2307.01952, section 2.5)."""


class SDXL(UNetFamily):
    """The Stable Diffusion XL family (Podell et al., arXiv 2307.01952): base, refiner, turbo."""

    kind: Literal["sdxl"] = "sdxl"

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> "LoadedSDXL":
        """Load ``parts`` of the pipeline: the U-Net in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold a Stable Diffusion XL pipeline.
        """
        return LoadedSDXL(self, device, precision, parts)


class LoadedSDXL(LoadedUNet):
    """A Stable Diffusion XL pipeline taken apart; a refiner is one that has only the second text encoder."""

    kohya = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}

    def __init__(self, config: SDXL, device: torch.device, precision: Precision, parts: Parts) -> None:
        index = read_index(config)
        if index.get("text_encoder_2", [None])[0] is None or "unet" not in index:
            raise wrong_model(config, "has no U-Net with a second text encoder: it is not of the family sdxl")
        self.refiner = bool(index.get("requires_aesthetics_score"))
        self.blind = bool(index.get("force_zeros_for_empty_prompt"))
        kind = "StableDiffusionXLImg2ImgPipeline" if self.refiner else "StableDiffusionXLPipeline"
        super().__init__(kind, config, device, precision, parts, add_watermarker=False)
        self.noise_up_to = REFINER_NOISE if self.refiner else 1.0

    def encode_caption(self, caption: str) -> States:
        """The last but one hidden state of each encoder, side by side, and the projected pooled state of the second.

        Both are zeros for an empty caption where the model's pipeline draws an unconditional image so: a dropped
        caption trains the branch that guidance will use.
        """
        states = []
        for name, encoder in zip(self.text_names, self.text_encoders, strict=True):
            tokenizer = self.parts[name.replace("text_encoder", "tokenizer")]
            states.append(clip_states(tokenizer, encoder, caption, tokenizer.model_max_length))
        text, pooled = torch.cat([hidden for hidden, _ in states], dim=-1), states[-1][1]
        if not caption and self.blind:
            return torch.zeros_like(text), torch.zeros_like(pooled)
        return text, pooled

    def condition(self, captions: list[str], geometry: Int[Tensor, "n 6"], *, remember: bool = True) -> Conditioning:
        """``text`` [n, tokens, both widths], ``text_embeds`` [n, projected] and ``time_ids``, float32.

        Time ids of an image are its own: [n, 6] as in ``geometry`` or, for the refiner, [n, 5] with an aesthetic score
        in place of the crop's size, low for an empty caption.
        """
        text, pooled = self.encode_captions(captions, remember)
        # Not in the precision of the run: bf16 turns 1023 into 1024.
        time_ids = geometry.to(self.device, torch.float32)
        if self.refiner:
            scores = [AESTHETIC if caption else NEGATIVE_AESTHETIC for caption in captions]
            time_ids = torch.cat([time_ids[:, :4], time_ids.new_tensor(scores)[:, None]], dim=1)
        return {"text": text, "text_embeds": pooled, "time_ids": time_ids}

    def kohya_layer(self, layer: str) -> str:
        return original_layer(layer, self.denoiser.config.layers_per_block)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_layer(layer: str, layers_per_block: int) -> str:
    """A U-Net layer's name in Stability's own code, which kohya's scripts use for SDXL, from diffusers' name for it.

    There the blocks are one list each way: every resnet (with its attention) is a place, every downsampler too.
    """
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    match = re.fullmatch(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", layer
    )
    if match is None:
        raise ValueError(f"policy.targets: {layer} has no name in kohya's files")
    way, block, kind, place, inner = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        inner = RESNET[inner]
    per_block = layers_per_block + 1
    if way == "mid":
        return f"middle_block.{2 * place if kind == 'resnets' else 1}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{(block + 1) * per_block - 1}.2.{inner}"
    index = block * per_block + place + (1 if way == "down" else 0)
    return f"{'input' if way == 'down' else 'output'}_blocks.{index}.{0 if kind == 'resnets' else 1}.{inner}"
