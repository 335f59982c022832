"""Made rejected images: the chosen image, made worse (Self-DPO or SUDO, arXiv 2504.14534).

The other way to make one, the chosen image of another pair, is a matter of order: see `EpochOrder.donors`.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dpo_core import randomness

SHRINK = 4
"""Of the paper, as is the grid."""
CELLS = 8
NOISE = 51.0
"""Standard deviation of the noise in grey levels: a fifth of the range."""


def make_worse(
    kind: Literal["blur", "grid", "noise"], crop: NDArray[np.uint8], seed: int, epoch: int, pair_id: str
) -> NDArray[np.uint8]:
    """A rejected image made of a chosen crop, both uint8 ``[side, side, 3]``; the same whenever a pair is met again in
    the same epoch.
    """
    if kind == "blur":
        return blur(crop)
    if kind == "grid":
        first, second = (randomness.uniform(seed, epoch, pair_id, f"grid cell {cell}") for cell in (0, 1))
        return swap_cells(crop, int(first * CELLS**2), 1 + int(second * (CELLS**2 - 1)))
    return add_noise(crop, randomness.generator(seed, epoch, pair_id, "rejected noise"))


def blur(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink to a quarter of the side and enlarge again, both bicubic."""
    side = len(crop)
    less = max(1, side // SHRINK)
    small = Image.fromarray(crop).resize((less, less), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def swap_cells(crop: NDArray[np.uint8], first: int, distance: int) -> NDArray[np.uint8]:
    """Exchange cell ``first`` of an 8 x 8 grid with the cell ``distance`` further on, both counted row by row.

    Goes on to the next cell while the two show the same, so that only an image of equal cells stays as it is.
    """
    swapped = crop.copy()
    for step in range(CELLS**2 - 1):
        second = first + 1 + (distance - 1 + step) % (CELLS**2 - 1)
        one, other = _cell(crop, first), _cell(crop, second % CELLS**2)
        if not np.array_equal(one, other):
            _cell(swapped, first)[:], _cell(swapped, second % CELLS**2)[:] = other, one
            break
    return swapped


def add_noise(crop: NDArray[np.uint8], generator: torch.Generator) -> NDArray[np.uint8]:
    """Add Gaussian noise to every value on its own."""
    noisy = crop + NOISE * torch.randn(crop.shape, generator=generator).numpy()
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _cell(image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A view; what is left of a side that eight does not divide belongs to no cell."""
    side = len(image) // CELLS
    row, column = divmod(index, CELLS)
    return image[row * side : (row + 1) * side, column * side : (column + 1) * side]
