"""CLIP by open_clip: two towers that turn images and texts into vectors of length one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from eval.scorers.base import DTYPES, Precision, normalized, rgb
from eval.scorers.weights import SUFFIXES

CARRIED = ("hf-hub:", "local-dir:")
PIXELS = "open_clip: shortest side bicubic (Pillow), centre crop, CLIP mean and std"


@dataclass(frozen=True)
class Towers:
    """A CLIP model that is ready. Towers compute in ``dtype``, what they return is float32."""

    network: Any
    pixels: Callable[[Sequence[Image.Image]], torch.Tensor]
    """Images -> float32 ``[n, 3, height, width]``, normalised."""
    tokenizer: Any
    device: str | torch.device
    dtype: torch.dtype

    def see(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors of the images, ``[n, d]``."""
        return normalized(self.network.encode_image(self.pixels(images).to(self.device, self.dtype)))

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of the texts, ``[n, d]``; what exceeds the context (77 tokens) is not read."""
        return normalized(self.network.encode_text(self.tokenizer(list(texts)).to(self.device)))


def load_towers(
    model: str, weights: str | None, device: str | torch.device, dtype: Precision, *, scorer: str
) -> Towers:
    """CLIP by an open_clip architecture and a tag or file of weights, or by `hf-hub:`/`local-dir:`, which bring theirs.

    Raises ValueError if open_clip does not know the model, or would use the wrong activation for OpenAI's weights.
    """
    import open_clip

    if model.startswith(CARRIED) == (weights is not None):
        raise ValueError(
            f"{scorer} scorer: model {model!r} with weights {weights!r}; allowed: an "
            "architecture with weights, or hf-hub:/local-dir: with weights null"
        )
    if weights == "openai" and not model.endswith("-quickgelu"):
        raise ValueError(
            f"{scorer} scorer: OpenAI's weights need QuickGELU, {model!r} has another activation; "
            f"allowed: {model}-quickgelu"
        )
    try:
        network, _, transform = open_clip.create_model_and_transforms(model, weights, device="cpu")
        tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{scorer} scorer: cannot load {model!r} with {weights!r}: {error}") from error
    one: Any = transform

    def pixels(images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([one(rgb(image)) for image in images])

    return Towers(network.to(device, DTYPES[dtype]).eval(), pixels, tokenizer, device, DTYPES[dtype])


def place_of(model: str, weights: str | None) -> str:
    """Where the weights come from: the folder or hub id that a model carries, the file, or the tag's hub id."""
    for scheme in CARRIED:
        if model.startswith(scheme):
            return model.removeprefix(scheme)
    if weights is None or weights.endswith(SUFFIXES):
        return str(weights)
    from open_clip import get_pretrained_cfg

    return (get_pretrained_cfg(model, weights) or {}).get("hf_hub", "").rstrip("/") or f"{model}:{weights}"
