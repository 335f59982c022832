"""How well each patch of an image is found again in the other image of its pair (PatchDPO, arXiv 2412.03177).

PatchDPO compares a generated image with the reference image it was asked to show. Its authors published the training
loss, but neither the code nor the data of the maps it reads, so this is our reading of the paper:

    quality(x)[h, w] = max over [i, j] of cos(f(x)[h, w], f(y)[i, j])

with patch features f of a frozen vision model and y the other image. For the generated image that is the paper's
formula; that the map of the reference image is the same with the images exchanged is inferred from the loss, which
weights it by 1 - map. Both directions being the same, no label is needed to make them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def best_matches(
    first: Float[Tensor, "n p d"], second: Float[Tensor, "n q d"]
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n q"]]:
    """The cosine of every patch with its best match in the other image, for both images; a zero feature matches none.

    A best match may lie anywhere in the other image and may serve many patches.
    """
    cosines = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).transpose(1, 2)
    return cosines.amax(dim=2), cosines.amax(dim=1)


def to_quality(cosines: Float[Tensor, "*shape"], low: float, high: float) -> Float[Tensor, "*shape"]:
    """The cosines in [0, 1]: ``low`` and what lies below become 0, ``high`` and what lies above 1, linear between.

    How the authors bring cosines into the range of weights is not known.
    """
    return ((cosines - low) / (high - low)).clamp(0.0, 1.0)


def to_grid(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n height width"]:
    """Maps of patches as maps of ``size`` (height, width), bilinear, averaged where the grid becomes coarser."""
    if tuple(maps.shape[1:]) == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def pair_quality(
    first: Float[Tensor, "n p d"],
    second: Float[Tensor, "n p d"],
    *,
    size: tuple[int, int],
    low: float = 0.0,
    high: float = 1.0,
) -> Float[Tensor, "n 2 height width"]:
    """The maps of both images of ``n`` pairs on a grid of ``size``; features are those of square grids of patches."""
    side = round(first.shape[1] ** 0.5)
    assert side * side == first.shape[1], f"{first.shape[1]} patches are no square"
    quality = torch.stack([to_quality(cosines, low, high) for cosines in best_matches(first, second)], dim=1)
    return to_grid(quality.flatten(0, 1).unflatten(1, (side, side)), size).unflatten(0, (len(first), 2))
