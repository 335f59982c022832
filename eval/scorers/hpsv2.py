"""HPS v2: the Human Preference Score. CLIP ViT-H/14 trained on HPDv2's preferences, in two versions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from eval.scorers.base import CLIP_MEAN, CLIP_STD, DTYPES, Identity, Precision, ScoreFunction, Scorer, cosines, rgb
from eval.scorers.weights import empty, find_file, in_folder, load_exactly, read_state

ARCHITECTURE = "ViT-H-14"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(Scorer):
    """Human Preference Score v2 (Wu et al., arXiv 2306.09341): 100 x cosine of prompt and image embedding. The versions
    have different scales, and papers write "HPSv2" for either: plain SD1.5 has about 26.5 with v2.0, 24 with v2.1.

    The image is padded to a square, not cropped as some other code does; on square images both are the same.
    """

    kind: Literal["hpsv2"] = "hpsv2"
    version: Literal["v2.0", "v2.1"] = "v2.1"
    """The checkpoint: v2.0 of June 2023, v2.1 of February 2024."""
    weights: str = "xswu/HPSv2"
    """A checkpoint file, or a folder or hub id with HPS_v2_compressed.pt (v2.0) or HPS_v2.1_compressed.pt."""
    antialias: bool = True
    """Smooth while making smaller, as torchvision does since 0.17. Published tables are older and probably did not; the
    pixels differ by up to a third of their range."""
    dtype: Precision = "float32"
    """Precision of the towers; float16 on a GPU, as the original runs."""

    columns: ClassVar[dict[str, str]] = {"hps": "100 x cosine; v2.0 about 23 to 29, v2.1 about 13 to 34"}
    primary: ClassVar[str] = "hps"
    scale: ClassVar[str] = "100 x cosine"

    @property
    def label(self) -> str:
        return self.name or self.variant_id

    @property
    def variant_id(self) -> str:
        return f"hps{self.version}"

    def places(self) -> list[str | None]:
        return [in_folder(self.weights, FILES[self.version])]

    def identity(self) -> Identity:
        how = "antialiased" if self.antialias else "not antialiased"
        pixels = f"longest side 224 bicubic on float pixels ({how}), padded with black, CLIP mean and std"
        return replace(super().identity(), preprocessing=pixels)

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Raises ValueError if the checkpoint is not there or not of this network."""
        import open_clip

        file = find_file(self.weights, FILES[self.version])
        network: Any = load_exactly(vit_h(), read_state(file), file).float().to(device, DTYPES[self.dtype])
        size = network.visual.image_size[0]
        tokenizer = open_clip.get_tokenizer("ViT-H-14")

        @torch.inference_mode()
        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            pixels = padded_pixels(images, size, antialias=self.antialias).to(device, DTYPES[self.dtype])
            seen = network.encode_image(pixels)
            said = network.encode_text(tokenizer(list(prompts)).to(device))
            return [{"hps": value} for value in (100 * cosines(seen, said)).tolist()]

        return score


def vit_h() -> torch.nn.Module:
    """CLIP ViT-H/14 as open_clip builds it, without weights."""
    import open_clip

    config = open_clip.get_model_config(ARCHITECTURE)
    assert config is not None
    return empty(lambda: open_clip.CLIP(**config))


def padded_pixels(images: Sequence[Image.Image], size: int = 224, *, antialias: bool = True) -> torch.Tensor:
    """The input of HPS v2: float32 ``[n, 3, size, size]``.

    The longest side is resized to ``size`` on floating-point pixels (so values may leave 0..1), black is put around the
    image, the odd pixel right and below, and only then channels are normalised: black is not zero for the network.
    """
    squares = []
    for image in images:
        pixels = torch.from_numpy(np.asarray(rgb(image), dtype=np.float32) / 255).permute(2, 0, 1)[None]
        longest = max(image.size)
        if longest != size:
            # Quotient first, as the original: halves round to another pixel for 28 pairs of sides up to 2048.
            high, wide = (round(side * (size / longest)) for side in pixels.shape[2:])
            pixels = torch.nn.functional.interpolate(
                pixels, (max(1, high), max(1, wide)), mode="bicubic", align_corners=False, antialias=antialias
            )
        high, wide = size - pixels.shape[2], size - pixels.shape[3]
        around = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        squares.append(torch.nn.functional.pad(pixels, around))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (torch.cat(squares) - mean) / std
