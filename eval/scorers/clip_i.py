"""CLIP-I: does the image show the subject of its reference images? By CLIP."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import Precision, ScoreFunction, Scorer
from eval.scorers.references import Remembered, mean_cosines
from eval.scorers.towers import PIXELS, load_towers, place_of


class ClipI(Scorer):
    """Mean cosine with the reference images by OpenAI's CLIP ViT-B/32 (DreamBooth, arXiv 2208.12242, section 4.1). It
    likes any object of the class; DINO asks for this very one."""

    kind: Literal["clip_i"] = "clip_i"
    model: str = "ViT-B-32-quickgelu"
    """An open_clip architecture, `hf-hub:owner/name`, or `local-dir:folder` with config and weights."""
    weights: str | None = "openai"
    """A tag of open_clip or a checkpoint file; null for `hf-hub:` and `local-dir:`, which bring their own."""
    dtype: Precision = "float32"
    """Precision of the tower."""

    columns: ClassVar[dict[str, str]] = {"clip_i": "mean cosine with the reference images, about 0.6 to 0.9"}
    primary: ClassVar[str] = "clip_i"
    needs_references: ClassVar[bool] = True
    preprocessing: ClassVar[str] = PIXELS
    scale: ClassVar[str] = "mean cosine"

    @property
    def variant_id(self) -> str:
        return f"clip_i on {self.model}"

    def places(self) -> list[str | None]:
        return [place_of(self.model, self.weights)]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if open_clip does not know the model, or would use the wrong activation for the weights."""
        towers = load_towers(self.model, self.weights, device, self.dtype, scorer=self.kind)
        remembered = Remembered(towers.see)

        @torch.inference_mode()
        def score(
            images: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Sequence[Image.Image]]
        ) -> list[dict[str, float]]:
            del prompts
            return [{"clip_i": value} for value in mean_cosines(images, references, towers.see, remembered)]

        return score
