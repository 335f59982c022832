"""A model that draws for preference pairs, and what is asked of those who judge."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from dpo_core.embedded import resolve_model
from eval.generate import SamplerSection, generate, use_scheduler
from eval.models import base_model, is_lora, load_pipeline, model_hash
from eval.scorers.base import Scorer


class Painter:
    """A diffusers folder, LoRA folder or hub id on this process's device. Raises ValueError when there is none."""

    def __init__(self, model: str, sampler: SamplerSection) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        folder, base = locate(model)
        self._pipeline: Any = load_pipeline(folder, self.device, sampler.dtype, base=base)
        self._sampler = sampler
        use_scheduler(self._pipeline, sampler.scheduler)

    def draw(self, wanted: Sequence[tuple[str, int]]) -> list[Image.Image]:
        """One image for each (prompt, seed), in batches of ``sampler.batch_size``."""
        drawn: list[Image.Image] = []
        for first in range(0, len(wanted), self._sampler.batch_size):
            batch = wanted[first : first + self._sampler.batch_size]
            drawn += generate(
                self._pipeline,
                [prompt for prompt, _ in batch],
                [seed for _, seed in batch],
                num_inference_steps=self._sampler.num_inference_steps,
                guidance_scale=self._sampler.guidance_scale,
                negative_prompt=self._sampler.negative_prompt,
                height=self._sampler.height,
                width=self._sampler.width,
            )
        return drawn


def locate(model: str) -> tuple[str, str | None]:
    """Where a model lies, and the base under it if it is a LoRA. Raises ValueError for a LoRA that names none."""
    folder = resolve_model(model)
    return folder, (locate(base_model(folder))[0] if is_lora(folder) else None)


def weights_of(model: str) -> str:
    """Names the exact weights of a model, with those of the base under a LoRA."""
    folder, base = locate(model)
    return model_hash(folder, base=base)


def judge_problem(scorer: Scorer, column: str) -> str | None:
    """Why this scorer cannot judge the images of a prompt by this column, None if it can."""
    if column not in scorer.columns:
        return f"{column!r} is not one of {', '.join(scorer.columns)}"
    if scorer.needs_references:
        return f"{scorer.label!r} compares with reference images, and a prompt has none"
    return None


def judge_id(scorer: Scorer) -> str:
    """Which measure it is, down to the weights."""
    identity = scorer.identity()
    return f"{identity.variant} {identity.weights} {identity.dtype}"


def as_read(data: bytes) -> Image.Image:
    """What a reader of the set will see: the image after JPEG. Judges look at this one."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def drawing_cost(images: int, sampler: SamplerSection) -> str:
    """How much work ``images`` are."""
    passes = images * sampler.num_inference_steps * (2 if sampler.guidance_scale > 1 else 1)
    return f"{images:,} to draw, {passes:,} passes through the denoiser"
