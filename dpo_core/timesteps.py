"""Which noise levels are trained on: one uniform number per pair in, a share of the schedule out."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dpo_core.section import Section


class Uniform(Section):
    """Every noise level of [low, high) alike; the refiner of SDXL is trained on [0, 0.2)."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(default=0.0, ge=0, lt=1)
    """Least noise, as a share of the schedule."""
    high: float = Field(default=1.0, gt=0, le=1)
    """Most noise, as a share of the schedule."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Uniform":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def share(self, uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.low + (self.high - self.low) * uniform


class Emphasis(Section):
    """The levels of [low, high) are drawn ``factor`` times as often as the others (early, late and range sampling)."""

    kind: Literal["emphasis"] = "emphasis"
    low: float = Field(default=0.75, ge=0, lt=1)
    """Where the emphasis begins, as a share of the schedule; 0.75 to 1 is the noisiest quarter."""
    high: float = Field(default=1.0, gt=0, le=1)
    """Where it ends."""
    factor: float = Field(default=5.0, gt=0)
    """How many times as often."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Emphasis":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def share(self, uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        inside, whole = self.high - self.low, 1 + (self.factor - 1) * (self.high - self.low)
        mass = uniform * whole
        within = self.low + (mass - self.low) / self.factor
        after = mass - (self.factor - 1) * inside
        return torch.where(
            mass < self.low, mass, torch.where(mass < self.low + self.factor * inside, within, after)
        ).clamp_(max=1 - 1e-9)


class Cubic(Section):
    """share = 1 - u^3: much noise more often (used by diffengine; after arXiv 2302.08453)."""

    kind: Literal["cubic"] = "cubic"

    def share(self, uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (1 - uniform.double() ** 3).clamp_(max=1 - 1e-9)


class Discrete(Section):
    """Only the levels that a sampler of ``steps`` steps visits, counted from the noisy end: 4 is SD-Turbo's and
    SDXL-Turbo's 249, 499, 749, 999; 50 is DDIM's usual subset."""

    kind: Literal["discrete"] = "discrete"
    steps: int = Field(default=50, ge=1, le=1000)
    """How many levels there are."""

    def share(self, uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        # Half a thousandth below the end of its part, so that 1000 timesteps give 249 and not 250.
        return ((uniform * self.steps).floor().clamp_(max=self.steps - 1) + 1) / self.steps - 0.0005


class LogitNormal(Section):
    """share = sigmoid(mean + std z) with z normal: middle noise more often (arXiv 2403.03206, eq. 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Above zero draws more noise, below zero less."""
    std: float = Field(default=1.0, gt=0)
    """Spread before the sigmoid."""

    def share(self, uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        normal = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
        return torch.sigmoid(self.mean + self.std * normal)


AnyTimesteps = Annotated[Uniform | Emphasis | Cubic | Discrete | LogitNormal, Field(discriminator="kind")]
"""Every way there is to draw timesteps."""
