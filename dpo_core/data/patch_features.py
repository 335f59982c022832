"""What a frozen vision model sees in each patch of an image: the features that patches are compared by."""

import inspect
from typing import Annotated, Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dpo_core.families.base import DTYPES, Precision, weights_hash
from dpo_core.section import Section

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class VisionSection(Section):
    """The model that compares patches: a vision transformer such as DINO, DINOv2 or DINOv3."""

    model: str = "facebook/dinov2-base"
    """A folder or hub id in transformers format with safetensors weights; it must have one token per square patch."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    side: int | None = Field(default=None, ge=1)
    """Side in pixels at which the model sees an image, a multiple of its patches; null takes the training resolution,
    rounded up. Twice the side costs four times the work (attention more) and finds details half the size."""
    precision: Precision = "fp32"
    """Precision of the model; cosines are computed in float32 whatever it is."""
    image_mean: Channels = [0.485, 0.456, 0.406]
    """Means of red, green and blue that are taken off; ImageNet's, as the DINO models want."""
    image_std: Channels = [0.229, 0.224, 0.225]
    """Deviations of red, green and blue that are divided by."""


class PatchFeatures:
    """The model on a device. Raises ValueError when it cannot be loaded or sees no square patches."""

    def __init__(self, section: VisionSection, resolution: int, device: torch.device) -> None:
        model: Any = load_vision_model(section)
        self.hash = weights_hash([model])
        self.device = device
        self.patch = patch_size(section, model.config)
        self.side = image_side(section, resolution, self.patch)
        self._model = model.to(device, DTYPES[section.precision]).requires_grad_(False).eval()
        self._section = section
        self._mean, self._std = (
            torch.tensor(values).view(3, 1, 1) for values in (section.image_mean, section.image_std)
        )
        # Models with learned positions interpolate them only when asked to; the others do it without, or have none.
        asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._settings = {"interpolate_pos_encoding": True} if asks else {}

    @property
    def patches(self) -> int:
        """Patches of an image; a square number."""
        return (self.side // self.patch) ** 2

    @torch.no_grad()
    def __call__(self, pixels: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n patches features"]:
        """The features of every patch, row by row, float32 on the device of the model."""
        images = pixels.float().div_(255)
        if images.shape[-1] != self.side:
            images = F.interpolate(
                images, size=(self.side, self.side), mode="bicubic", align_corners=False, antialias=True
            ).clamp_(0, 1)
        images = images.sub_(self._mean).div_(self._std).to(self.device, self._model.dtype)
        states = self._model(pixel_values=images, **self._settings).last_hidden_state
        if states.ndim != 3 or states.shape[1] < self.patches:
            raise ValueError(
                f"vision.model: {self._section.model!r} gives states of {tuple(states.shape)} for images of "
                f"{self.side} pixels, not one for each of {self.patches} patches; a vision transformer is needed"
            )
        return states[:, -self.patches :].float()


def load_vision_model(section: VisionSection) -> Any:
    """The model in float32 on the CPU. Raises ValueError when there is none with safetensors weights."""
    from transformers import AutoModel

    try:
        return AutoModel.from_pretrained(
            section.model, revision=section.revision or "main", dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"vision.model: {section.model!r} cannot be loaded: {' '.join(str(error).split())} Allowed: a folder or "
            "hub id in transformers format with safetensors weights"
        ) from error


def load_vision_config(section: VisionSection) -> Any:
    """The configuration of the model, no weights. Raises ValueError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(section.model, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(f"vision.model: {section.model!r} has no config: {' '.join(str(error).split())}") from error


def patch_size(section: VisionSection, config: Any) -> int:
    """Side of a patch in pixels. Raises ValueError for a model that has none."""
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"vision.model: {section.model!r} is a {getattr(config, 'model_type', 'model')} without square patches; a "
            "vision transformer is needed (DINO, DINOv2, DINOv3 and the like)"
        )
    return size


def image_side(section: VisionSection, resolution: int, patch: int) -> int:
    """Side of the images that the model sees. Raises ValueError when ``section.side`` does not hold whole patches."""
    if section.side is None:
        return -(-resolution // patch) * patch
    if section.side % patch:
        raise ValueError(f"vision.side: {section.side} is not a multiple of the model's patches of {patch} pixels")
    return section.side
