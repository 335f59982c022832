"""What every scorer is: a config section that loads into a function (images, prompts) -> columns of numbers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from eval.section import Section

ScoreFunction = Callable[[Sequence[Image.Image], Sequence[str]], list[dict[str, float]]]
"""(images, prompts), equally long -> one dict per image, with exactly the scorer's columns as keys."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Scorer(Section):
    """A scorer is its own config. Scores are per image; all averaging is done in eval/stats.py."""

    kind: Any  # a Literal of its name in every scorer
    name: str | None = None
    """Its name in tables and metrics; needed only if a plan has two scorers of one kind."""

    columns: ClassVar[dict[str, str]]
    """What it returns for an image: column -> meaning, with the range."""
    primary: ClassVar[str]
    """The column that decides; the others explain."""
    higher_is_better: ClassVar[bool] = True
    """Holds for all columns."""

    @property
    def label(self) -> str:
        """The name, or the kind if no name is given."""
        return self.name or self.kind

    @abstractmethod
    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Read the weights once; the returned function is called batch by batch."""

    def tags(self, prompt: str) -> dict[str, str]:
        """Groups the prompt belongs to (group name -> value) for the bars in the report; none by default."""
        del prompt
        return {}


def rgb(image: Image.Image) -> Image.Image:
    """The image as three channels; transparency is laid on white, as a viewer would show it."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def clip_pixels(images: Sequence[Image.Image], size: int = 224) -> torch.Tensor:
    """The input of OpenAI's CLIP towers: float32 ``[n, 3, size, size]``.

    The shortest side is resized to ``size`` (Pillow, bicubic), the centre cropped, and the channels normalised. Written
    out here because image processors of libraries move by a few 1/255 between releases, and scores with them.
    """
    planes = []
    for image in images:
        short = min(image.size)
        wide, high = (max(size, int(size * side / short)) for side in image.size)
        resized = rgb(image).resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        planes.append(np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32) / 255)
    pixels = (np.stack(planes) - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
