"""The one input and the one output type of every objective."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from dpo_core.section import Section


@dataclass(frozen=True)
class PairErrors:
    """Squared denoising errors of a batch of pairs, averaged over channels, float32.

    An objective never asks which model family the maps come from. What it did not ask for is None.
    """

    timesteps: Int[Tensor, " pairs"] | Float[Tensor, " pairs"]
    policy_chosen: Float[Tensor, "pairs height width"]
    policy_rejected: Float[Tensor, "pairs height width"] | None = None
    reference_chosen: Float[Tensor, "pairs height width"] | None = None
    reference_rejected: Float[Tensor, "pairs height width"] | None = None
    chosen_shift: Float[Tensor, "pairs height width"] | None = None
    """Squared distance between the predictions of policy and reference for the chosen image, averaged over channels."""
    residual_product: Float[Tensor, "pairs height width"] | None = None
    """Product of the policy's residuals (prediction - target) for chosen and rejected, averaged over channels."""
    chosen_quality: Float[Tensor, "pairs height width"] | None = None
    """Patch quality of the chosen image, as stored with the data."""
    rejected_quality: Float[Tensor, "pairs height width"] | None = None
    baseline: Float[Tensor, ""] | None = None
    """Mean over the global batch of what `Objective.baseline_terms` returned for each pair, without gradient."""


@dataclass(frozen=True)
class LossOutput:
    """What an objective says of each pair; the mean over pairs is taken outside, over the whole global batch."""

    loss: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"] | None = None
    """By how much the policy prefers chosen to rejected, in the objective's own unit; ``loss`` is computed from it.
    None where the objective does not weigh the two against each other."""
    metrics: dict[str, Float[Tensor, " pairs"]] = field(default_factory=dict)


class Objective(Section):
    """A preference objective: a frozen config that can be called on ``PairErrors``."""

    needs_reference: ClassVar[bool]
    """Whether the frozen reference predicts as well."""
    needs_rejected: ClassVar[bool]
    """Whether the rejected image is denoised as well."""
    has_margin: ClassVar[bool] = True
    """Whether the loss weighs chosen against rejected by ``LossOutput.margin``."""
    flips_labels: ClassVar[bool] = False
    """Whether chosen and rejected change places before anything is computed."""
    needs_shift: ClassVar[bool] = False
    """Whether ``PairErrors.chosen_shift`` is read."""
    needs_quality: ClassVar[bool] = False
    """Whether the data must hold patch quality maps."""
    needs_baseline: ClassVar[bool] = False
    """Whether ``PairErrors.baseline`` is read: one more forward pass of the policy where a step has several batches."""
    captions: ClassVar[Literal["any", "per_image"]] = "any"
    """Whether each image must have a caption of its own."""
    rejected: ClassVar[Literal["any", "made"]] = "any"
    """Whether the rejected image must be made from chosen ones (``data.rejected``)."""

    def __call__(self, errors: PairErrors) -> LossOutput:
        raise TypeError(f"{type(self).__name__} does not say how to turn errors into a loss")

    def baseline_terms(self, errors: PairErrors) -> Float[Tensor, " pairs"]:
        """What is averaged over the global batch to make ``PairErrors.baseline``."""
        raise TypeError(f"{type(self).__name__} has no baseline")


def per_pair(error: Float[Tensor, "pairs height width"]) -> Float[Tensor, " pairs"]:
    """The mean of an error map over space."""
    return error.mean(dim=(1, 2))


def reference_margin(errors: PairErrors) -> Float[Tensor, " pairs"]:
    """(r_chosen - e_chosen) - (r_rejected - e_rejected): by how much training moved the policy to the chosen image.

    Positive when the policy denoises the chosen image better, or the rejected one worse, than the reference does.
    """
    assert errors.policy_rejected is not None
    assert errors.reference_chosen is not None
    assert errors.reference_rejected is not None
    chosen = per_pair(errors.policy_chosen) - per_pair(errors.reference_chosen)
    rejected = per_pair(errors.policy_rejected) - per_pair(errors.reference_rejected)
    return rejected - chosen
