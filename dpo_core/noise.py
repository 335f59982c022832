"""The noise of a pair, and what may be mixed into it."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from dpo_core import randomness
from dpo_core.section import Section


class NoiseSection(Section):
    """White noise unless something is added. Both images of a pair always share it."""

    offset: float = Field(default=0.0, ge=0)
    """Adds this many times one normal number per channel, so that a model learns very dark and very bright images."""
    pyramid_discount: float = Field(default=0.0, ge=0, lt=1)
    """Adds noise of coarser scales, each weighted with a further factor of this; the sum has variance one again."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Noises each input with this much noise of its own that the target knows nothing of (arXiv 2301.11706)."""


def pair_noise(
    section: NoiseSection, shape: tuple[int, ...], seed: int, epochs: list[int], pair_ids: list[str]
) -> Float[Tensor, "pairs c h w"]:
    """The noise that both images of each pair share, float32 on the CPU; row i is a function of pair i alone."""
    noise = randomness.normal(shape, seed, epochs, pair_ids, "noise")
    if section.pyramid_discount:
        noise = add_pyramid(section.pyramid_discount, noise, seed, epochs, pair_ids)
    if section.offset:
        noise = noise + section.offset * randomness.normal((shape[0], 1, 1), seed, epochs, pair_ids, "noise offset")
    return noise


def add_pyramid(
    discount: float, noise: Float[Tensor, "pairs c h w"], seed: int, epochs: list[int], pair_ids: list[str]
) -> Float[Tensor, "pairs c h w"]:
    """Noise of halved sizes, stretched to full size and added; each pair is scaled back to variance one."""
    channels, height, width = noise.shape[1:]
    level = 1
    while (small := (height >> level, width >> level))[0] >= 1 and small[1] >= 1:
        coarse = randomness.normal((channels, *small), seed, epochs, pair_ids, f"noise pyramid {level}")
        noise = noise + discount**level * interpolate(coarse, size=(height, width), mode="bilinear")
        level += 1
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def input_noise(
    section: NoiseSection,
    noise: Float[Tensor, "n c h w"],
    sides: int,
    seed: int,
    epochs: list[int],
    pair_ids: list[str],
) -> Float[Tensor, "n c h w"]:
    """What the input is noised with, given the pairs' noise once per side: chosen first, then rejected.

    The perturbation is added to the noise that the pair shares. (The Salesforce script adds it before it shares the
    noise, so its rejected images are noised with one noise and compared with another.)
    """
    if not section.input_perturbation:
        return noise
    extra = randomness.normal((2, *noise.shape[1:]), seed, epochs, pair_ids, "input perturbation")[:, :sides]
    return noise + section.input_perturbation * extra.transpose(0, 1).flatten(0, 1).to(noise.device)


def timestep_uniforms(seed: int, epochs: list[int], pair_ids: list[str]) -> Float[Tensor, " pairs"]:
    """One number in [0, 1) per pair, float64, from which its timestep is made."""
    draws = [randomness.uniform(seed, epoch, pair, "timestep") for epoch, pair in zip(epochs, pair_ids, strict=True)]
    return torch.tensor(draws, dtype=torch.float64)
