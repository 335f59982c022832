"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, a transformer over patches, a rectified flow."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from dpo_core.families.base import Conditioning, Parts, Precision
from dpo_core.families.captions import States, clip_states, t5_states
from dpo_core.families.transformer import FlowFamily, LoadedFlow
from dpo_core.noising import Timesteps


class SD3(FlowFamily):
    """The Stable Diffusion 3 / 3.5 family (Esser et al., arXiv 2403.03206)."""

    kind: Literal["sd3"] = "sd3"
    t5: bool = True
    """Whether captions are also read by T5, the largest text encoder; without it the denoiser gets zeros in its place.
    Exported pipelines keep T5: load one with ``text_encoder_3=None`` to generate as it was trained."""
    t5_max_length: int = Field(default=256, ge=1, le=512)
    """Tokens of a caption that T5 reads."""

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> "LoadedSD3":
        """Load ``parts`` of the pipeline: the transformer in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold a Stable Diffusion 3 pipeline, or one without T5
        although ``t5`` is asked for.
        """
        return LoadedSD3(self, device, precision, parts)


class LoadedSD3(LoadedFlow):
    """A Stable Diffusion 3 pipeline taken apart."""

    pipeline_type = "StableDiffusion3Pipeline"
    clip_names = ("text_encoder", "text_encoder_2")

    def __init__(self, config: SD3, device: torch.device, precision: Precision, parts: Parts) -> None:
        super().__init__(config, device, precision, parts, () if config.t5 else ("text_encoder_3", "tokenizer_3"))
        if config.t5 and parts != "no_text" and self.parts["text_encoder_3"] is None:
            raise ValueError(f"family.t5: {config.model!r} has no T5 encoder; set family.t5=false")
        self.t5 = config.t5
        self.length = self.parts["tokenizer"].model_max_length
        self.t5_shape = (1, config.t5_max_length, self.text_width)

    def encode(self, caption: str, *, remember: bool) -> Conditioning:
        """``text``: CLIP's tokens, both encoders side by side and padded with zeros to T5's width, then T5's,
        [1, tokens, width]. ``pooled``: the pooled states of both CLIP encoders, [1, width]."""
        first, first_pooled = self.memory.recall("text_encoder", caption, self._first, keep=remember)
        second, second_pooled = self.memory.recall("text_encoder_2", caption, self._second, keep=remember)
        if not self.t5:
            t5 = first.new_zeros(self.t5_shape)
        else:
            (t5,) = self.memory.recall("text_encoder_3", caption, self._t5)
        clip = torch.cat([first, second], dim=-1)
        clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return {"text": torch.cat([clip, t5], dim=1), "pooled": torch.cat([first_pooled, second_pooled], dim=-1)}

    def _first(self, caption: str) -> States:
        return clip_states(self.parts["tokenizer"], self.text_encoders[0], caption, self.length)

    def _second(self, caption: str) -> States:
        return clip_states(self.parts["tokenizer_2"], self.text_encoders[1], caption, self.length)

    def _t5(self, caption: str) -> States:
        return t5_states(self.parts["tokenizer_3"], self.parts["text_encoder_3"], caption, self.t5_shape[1])

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        return denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
        ).sample
