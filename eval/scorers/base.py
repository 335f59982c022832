"""What every scorer is: a config section that loads into a function (images, prompts) -> columns of numbers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from eval.scorers.weights import weights_name
from eval.section import Section

ScoreFunction = Callable[..., list[dict[str, float]]]
"""(images, prompts), equally long -> one dict per image, with exactly the scorer's columns as keys. A scorer with
``needs_references`` takes a third list: for each image the reference images of its prompt, one at least."""

Precision = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Identity:
    """What a number is. The same name on two of these is not the same measure, and their scores do not compare."""

    variant: str
    """Scorer and version, e.g. ``hpsv2.1``."""
    weights: str
    """What :func:`eval.scorers.weights.weights_name` calls them, joined by ``+``; ``none`` if nothing was learned."""
    preprocessing: str
    """How an image becomes the network's input."""
    dtype: str
    """Of the towers; what combines their outputs is always float32."""
    scale: str
    """From the network's output to the number."""


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
    needs_references: ClassVar[bool] = False
    """Its function takes reference images too."""
    preprocessing: ClassVar[str] = "as drawn"
    scale: ClassVar[str] = "raw"
    caveat: ClassVar[str] = ""
    """Why its numbers must not be held against published ones of that name; empty if they may be."""

    @property
    def label(self) -> str:
        """The name, or the kind if no name is given: short, for tables, sentences and names of metrics."""
        return self.name or self.kind

    @property
    def variant_id(self) -> str:
        """Which of the measures under this kind it is."""
        return self.kind

    def places(self) -> list[str | None]:
        """The folders, files or hub ids its numbers come from; None for weights that come with this package."""
        return []

    def identity(self) -> Identity:
        """What is kept beside every score. Files are hashed, which takes seconds for gigabytes, once per process."""
        weights = "+".join(weights_name(place) if place else "shipped" for place in self.places())
        dtype = str(getattr(self, "dtype", "none"))
        return Identity(self.variant_id, weights or "none", self.preprocessing, dtype, self.scale)

    @abstractmethod
    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Read the weights once; the returned function is called batch by batch."""

    def tags(self, prompt: str) -> dict[str, str]:
        """Groups the prompt belongs to (group name -> value) for the bars in the report; none by default.

        Raises ValueError for a prompt that the scorer cannot judge, before anything is drawn.
        """
        del prompt
        return {}


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of each row of ``first`` with the same row of ``second``, ``[n, d]`` each -> ``[n]``, in float32.

    Half precision stops at the towers: bfloat16 has steps of 0.001 to 0.002 at 0.25, a tenth of a PickScore point, so
    cosines taken in it tie where models differ.
    """
    return (normalized(first) * normalized(second)).sum(-1)


def normalized(features: torch.Tensor) -> torch.Tensor:
    """Rows of length one, float32."""
    return torch.nn.functional.normalize(features.float(), dim=-1)


def embedding(output: Any) -> torch.Tensor:
    """The projected embedding that ``get_image_features`` and ``get_text_features`` return, ``[n, d]``.

    transformers 5 wraps it, where ``pooler_output`` is the projected one; before, it was the tensor itself.
    """
    return output if torch.is_tensor(output) else output.pooler_output


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
    return cropped_pixels(images, size, size, CLIP_MEAN, CLIP_STD)


def cropped_pixels(
    images: Sequence[Image.Image], resize: int, crop: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Shortest side to ``resize`` (Pillow, bicubic), the centre ``crop`` cut out, channels normalised."""
    planes = []
    for image in images:
        short = min(image.size)
        wide, high = (max(resize, int(resize * side / short)) for side in image.size)
        resized = rgb(image).resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - crop) / 2), round((high - crop) / 2)
        planes.append(np.asarray(resized.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255)
    pixels = (np.stack(planes) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
