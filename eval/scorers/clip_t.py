"""CLIP-T: does a subject's image follow its prompt? The text measure of DreamBench."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import Precision, ScoreFunction, Scorer
from eval.scorers.towers import PIXELS, load_towers, place_of


class ClipT(Scorer):
    """Cosine of image and prompt by OpenAI's CLIP ViT-B/32 (DreamBooth, arXiv 2208.12242, section 4.1). The prompt must
    be without the subject's unique token ("a backpack in the jungle")."""

    kind: Literal["clip_t"] = "clip_t"
    model: str = "ViT-B-32-quickgelu"
    """An open_clip architecture, `hf-hub:owner/name`, or `local-dir:folder` with config and weights."""
    weights: str | None = "openai"
    """A tag of open_clip or a checkpoint file; null for `hf-hub:` and `local-dir:`, which bring their own."""
    dtype: Precision = "float32"
    """Precision of the towers."""

    columns: ClassVar[dict[str, str]] = {"clip_t": "cosine of image and prompt embedding, about 0.2 to 0.35"}
    primary: ClassVar[str] = "clip_t"
    preprocessing: ClassVar[str] = PIXELS
    scale: ClassVar[str] = "cosine"

    @property
    def variant_id(self) -> str:
        return f"clip_t on {self.model}"

    def places(self) -> list[str | None]:
        return [place_of(self.model, self.weights)]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if open_clip does not know the model, or would use the wrong activation for the weights."""
        towers = load_towers(self.model, self.weights, device, self.dtype, scorer=self.kind)

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            cosine = (towers.see(images) * towers.read(prompts)).sum(-1)
            return [{"clip_t": value} for value in cosine.tolist()]

        return score
