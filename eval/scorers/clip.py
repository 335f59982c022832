"""CLIPScore: does the image show what the prompt says? Cosine of CLIP embeddings, by open_clip."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import Identity, Precision, ScoreFunction, Scorer
from eval.scorers.towers import CARRIED, PIXELS, load_towers, place_of


@dataclass(frozen=True)
class Variant:
    model: str
    weights: str
    prefix: str
    clipped: bool
    """2.5 x max(cosine, 0) instead of 100 x cosine."""


VARIANTS = {
    "l14": Variant("ViT-L-14-quickgelu", "openai", "", False),
    "h14": Variant("ViT-H-14", "laion2b_s32b_b79k", "", False),
    "hessel": Variant("ViT-B-32-quickgelu", "openai", "A photo depicts ", True),
}


class CLIPScore(Scorer):
    """Cosine between image and prompt embedding. Three measures of the literature go by this name, and their numbers
    do not compare: `l14` and `h14` are 100 x cosine with OpenAI's ViT-L/14 or LAION's ViT-H/14, without a floor, so
    differences below zero stay visible; `hessel` is the original (Hessel et al., arXiv 2104.08718, equation 1):
    ViT-B/32, 2.5 x max(cosine, 0), the prompt after "A photo depicts "."""

    kind: Literal["clip"] = "clip"
    variant: Literal["l14", "h14", "hessel"] = "l14"
    """The measure: model, prefix and formula."""
    model: str | None = None
    """Another model under the variant's formula: an open_clip architecture, `hf-hub:owner/name`, or `local-dir:folder`
    with config and weights; null for the variant's own."""
    weights: str | None = None
    """A tag of open_clip or a checkpoint file; null for the variant's own, and with `hf-hub:` and `local-dir:`."""
    prefix: str | None = None
    """Put before the prompt; null for the variant's own."""
    dtype: Precision = "float32"
    """Precision of the towers; float16 on a GPU."""

    columns: ClassVar[dict[str, str]] = {
        "clip": "100 x cosine of image and prompt embedding, photos about 20 to 40; hessel: 2.5 x cosine, 0 at least"
    }
    primary: ClassVar[str] = "clip"
    preprocessing: ClassVar[str] = PIXELS

    @property
    def label(self) -> str:
        return self.name or ("clip" if self.variant == "l14" else f"clip-{self.variant}")

    @property
    def variant_id(self) -> str:
        return f"clipscore-{self.variant}" + (f" on {self.model}" if self.model else "")

    def chosen(self) -> tuple[str, str | None]:
        """Model and weights for :func:`eval.scorers.towers.load_towers`."""
        preset = VARIANTS[self.variant]
        model = self.model or preset.model
        return model, None if self.weights is None and model.startswith(CARRIED) else self.weights or preset.weights

    def places(self) -> list[str | None]:
        return [place_of(*self.chosen())]

    def identity(self) -> Identity:
        clipped = VARIANTS[self.variant].clipped
        scale = "2.5 x max(cosine, 0)" if clipped else "100 x cosine"
        return replace(super().identity(), scale=scale)

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if open_clip does not know the model, or would use the wrong activation for the weights."""
        preset = VARIANTS[self.variant]
        prefix = preset.prefix if self.prefix is None else self.prefix
        towers = load_towers(*self.chosen(), device, self.dtype, scorer="clip")

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            cosine = (towers.see(images) * towers.read([prefix + prompt for prompt in prompts])).sum(-1)
            values = 2.5 * cosine.clamp(min=0) if preset.clipped else 100 * cosine
            return [{"clip": value} for value in values.tolist()]

        return score
