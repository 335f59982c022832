"""AuraFlow: one T5-like text encoder, a transformer over patches, a rectified flow."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dpo_core.families.base import Conditioning, Parts, Precision
from dpo_core.families.captions import States
from dpo_core.families.transformer import FlowFamily, LoadedFlow
from dpo_core.noising import Timesteps


class AuraFlow(FlowFamily):
    """The AuraFlow family (fal, 2024; open MMDiT after arXiv 2403.03206)."""

    has_clip: ClassVar[bool] = False

    kind: Literal["auraflow"] = "auraflow"
    max_length: int = Field(default=256, ge=1)
    """Tokens of a caption that the text encoder reads."""

    def load(self, device: torch.device, precision: Precision, parts: Parts = "all") -> "LoadedAuraFlow":
        """Load ``parts`` of the pipeline: the transformer in float32, the frozen encoders in ``precision``.

        Raises ValueError when the folder or hub id does not hold an AuraFlow pipeline.
        """
        return LoadedAuraFlow(self, device, precision, parts)


class LoadedAuraFlow(LoadedFlow):
    """An AuraFlow pipeline taken apart."""

    pipeline_type = "AuraFlowPipeline"

    def __init__(self, config: AuraFlow, device: torch.device, precision: Precision, parts: Parts) -> None:
        super().__init__(config, device, precision, parts)
        self.max_length = config.max_length

    def encode(self, caption: str, *, remember: bool) -> Conditioning:
        """``text``: the last hidden layer, zero where there is padding, [1, tokens, width]."""
        del remember
        (text,) = self.memory.recall("text_encoder", caption, self._text)
        return {"text": text}

    def _text(self, caption: str) -> States:
        read = self.parts["tokenizer"](
            caption, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        ).to(self.device)
        hidden = self.parts["text_encoder"](**read)[0]
        return (hidden * read.attention_mask[:, :, None],)

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy: Float[Tensor, "n c h w"],
        timesteps: Timesteps,
        conditioning: Conditioning,
    ) -> Float[Tensor, "n c h w"]:
        return denoiser(
            hidden_states=noisy,
            encoder_hidden_states=conditioning["text"],
            timestep=timesteps / self.noising.num_timesteps,
        ).sample
