"""The one input and the one output type of every objective."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dpo_core.section import Section


@dataclass(frozen=True)
class PairErrors:
    """Squared denoising errors of a batch of pairs, averaged over channels, float32.

    An objective never asks which model family the maps come from. A side that the objective did not ask for is None.
    """

    timesteps: Int[Tensor, " pairs"]
    policy_chosen: Float[Tensor, "pairs height width"]
    policy_rejected: Float[Tensor, "pairs height width"] | None = None
    reference_chosen: Float[Tensor, "pairs height width"] | None = None
    reference_rejected: Float[Tensor, "pairs height width"] | None = None


@dataclass(frozen=True)
class LossOutput:
    """What an objective says of each pair; the mean over pairs is taken outside, over the whole global batch."""

    loss: Float[Tensor, " pairs"]
    metrics: dict[str, Float[Tensor, " pairs"]] = field(default_factory=dict)


class Objective(Section):
    """A preference objective: a frozen config that can be called on ``PairErrors``."""

    needs_reference: ClassVar[bool]
    needs_rejected: ClassVar[bool]

    def __call__(self, errors: PairErrors) -> LossOutput:
        raise TypeError(f"{type(self).__name__} does not say how to turn errors into a loss")


def per_pair(error: Float[Tensor, "pairs height width"]) -> Float[Tensor, " pairs"]:
    """The mean of an error map over space."""
    return error.mean(dim=(1, 2))


def accuracy(margin: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Implicit accuracy: 1 where the margin is positive, one half where it is zero."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()
