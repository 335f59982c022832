"""Aesthetic predictor v2 (LAION): how much would people like the look of this image? The prompt plays no part."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Precision, ScoreFunction, Scorer, clip_pixels, normalized
from eval.scorers.weights import from_folder, read_state

SHIPPED_HEAD = Path(__file__).parent / "aesthetic_head.safetensors"


class Aesthetic(Scorer):
    """The linear head of github.com/christophschuhmann/improved-aesthetic-predictor (``sac+logos+ava1-l14-linearMSE``)
    on the L2-normalised image embedding of OpenAI's CLIP ViT-L/14.

    It rewards saturation and contrast, so report it beside a scorer that reads the prompt.
    """

    kind: Literal["aesthetic"] = "aesthetic"
    clip: str = "openai/clip-vit-large-patch14"
    """The CLIP model, transformers format: a folder or a hub id."""
    head: str | None = None
    """The head's checkpoint (.safetensors or .pth); null takes the one that comes with this package."""
    dtype: Precision = "float32"
    """Precision of the tower; the head is float32."""

    columns: ClassVar[dict[str, str]] = {"aesthetic": "predicted rating, about 1 to 10; generations mostly 4.5 to 6.5"}
    primary: ClassVar[str] = "aesthetic"
    preprocessing: ClassVar[str] = "shortest side 224 bicubic (Pillow), centre crop, CLIP mean and std"
    scale: ClassVar[str] = "head's rating"

    @property
    def variant_id(self) -> str:
        return "laion-aesthetic-v2 (sac+logos+ava1-l14-linearMSE)"

    def places(self) -> list[str | None]:
        return [self.clip, self.head]

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if the CLIP model is not there or its embedding does not fit the head."""
        from transformers import CLIPVisionModelWithProjection

        tower = from_folder(CLIPVisionModelWithProjection, self.clip, dtype=torch.float32)
        tower = tower.to(device, DTYPES[self.dtype])
        weight, bias = (part.to(device) for part in load_head(self.head))
        if tower.config.projection_dim != len(weight):
            raise ValueError(
                f"aesthetic scorer: {self.clip!r} embeds in {tower.config.projection_dim} dimensions, "
                f"the head needs {len(weight)}"
            )
        size = int(tower.config.image_size)

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            del prompts
            embeddings = tower(pixel_values=clip_pixels(images, size).to(device, tower.dtype)).image_embeds
            return [{"aesthetic": value} for value in rate(embeddings, weight, bias).tolist()]

        return score


def rate(embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Ratings ``[n]`` of CLIP image embeddings ``[n, d]`` (any length; they are normalised here)."""
    return normalized(embeddings) @ weight + bias


def load_head(path: str | Path | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The head as one affine map: weight ``[d]`` and bias ``[]``, float32.

    The published network is five linear layers without activations between them, which is exactly one affine map, so
    that is what is shipped and used; a checkpoint of the five layers is folded on reading, in float64.
    """
    file = Path(path) if path else SHIPPED_HEAD
    if not file.is_file():
        raise ValueError(f"aesthetic scorer: no head checkpoint at {str(file)!r}")
    state = read_state(file)
    if set(state) == {"weight", "bias"}:
        return state["weight"], state["bias"]
    layers = sorted({int(key.split(".")[1]) for key in state if key.startswith("layers.")})
    if not layers or len(state) != 2 * len(layers):
        raise ValueError(
            f"aesthetic scorer: {str(file)!r} is not such a head: its tensors are {', '.join(sorted(state))}"
        )
    weight = torch.eye(state[f"layers.{layers[0]}.weight"].shape[1], dtype=torch.float64)
    bias = torch.zeros(weight.shape[0], dtype=torch.float64)
    for layer in layers:
        matrix = state[f"layers.{layer}.weight"].double()
        weight, bias = matrix @ weight, matrix @ bias + state[f"layers.{layer}.bias"].double()
    return weight[0].float(), bias[0].float()
