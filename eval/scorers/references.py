"""Comparing images with the reference images of their prompt."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from PIL import Image

Embed = Callable[[Sequence[Image.Image]], torch.Tensor]
"""Images -> unit vectors ``[n, d]``, float32."""


class Remembered:
    """An embedding that computes each different image once: the references of a subject come back with every prompt."""

    def __init__(self, embed: Embed) -> None:
        self.embed = embed
        self.known: dict[bytes, torch.Tensor] = {}

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        names = [_name(image) for image in images]
        fresh = {name: image for name, image in zip(names, images, strict=True) if name not in self.known}
        if fresh:
            self.known |= dict(zip(fresh, self.embed(list(fresh.values())), strict=True))
        return torch.stack([self.known[name] for name in names])


def mean_cosines(
    images: Sequence[Image.Image], references: Sequence[Sequence[Image.Image]], embed: Embed, remembered: Remembered
) -> list[float]:
    """Of each image: the mean cosine with its references, which is the mean over all pairs of image and reference once
    it is averaged over the images of a subject. Raises ValueError for an image without references."""
    if not all(references):
        raise ValueError("an image has no reference images to compare it with")
    flat = remembered([image for several in references for image in several])
    parts = flat.split([len(several) for several in references])
    return [float((part @ vector).mean()) for vector, part in zip(embed(images), parts, strict=True)]


def _name(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()
