"""Diffusion-KTO."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair, reference_margin


class KTO(Objective):
    """Utility of each image on its own (Li et al., arXiv 2404.04465; Ethayarajh et al., arXiv 2402.01306).

    loss = mean over the two images of  weight (1 - U(+-v)),  v = (beta / 2) (r - e - baseline)

    with + for the chosen and - for the rejected image, and the baseline the mean of r - e over all images of the global
    batch, at least zero, without gradient: by how much the policy has left its reference. ``beta`` carries the factor
    one half as in ``dpo``; the original script has none, so its 1000 is our 2000.
    """

    kind: Literal["kto"] = "kto"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""
    utility: Literal["sigmoid", "loss_averse", "risk_seeking"] = "sigmoid"
    """U: sigmoid (Kahneman and Tversky's), log sigmoid(v) or -log sigmoid(-v)."""
    chosen_weight: float = Field(default=1.0, ge=0)
    """Weight of chosen images (lambda_D)."""
    rejected_weight: float = Field(default=1.0, ge=0)
    """Weight of rejected images (lambda_U)."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    needs_baseline: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.baseline is not None
        margin = 0.5 * self.beta * reference_margin(errors)
        # The two values of a pair are its mean plus and minus half the margin.
        middle = 0.5 * self.beta * (self.baseline_terms(errors) - errors.baseline.clamp(min=0))
        chosen, rejected = self.utility_of(middle + margin / 2), self.utility_of(-(middle - margin / 2))
        loss = 0.5 * (self.chosen_weight * (1 - chosen) + self.rejected_weight * (1 - rejected))
        return LossOutput(loss=loss, margin=margin)

    def baseline_terms(self, errors: PairErrors) -> Float[Tensor, " pairs"]:
        """The mean of r - e over the two images of each pair."""
        assert errors.policy_rejected is not None
        assert errors.reference_chosen is not None
        assert errors.reference_rejected is not None
        chosen = per_pair(errors.reference_chosen) - per_pair(errors.policy_chosen)
        rejected = per_pair(errors.reference_rejected) - per_pair(errors.policy_rejected)
        return 0.5 * (chosen + rejected)

    def utility_of(self, value: Float[Tensor, " images"]) -> Float[Tensor, " images"]:
        if self.utility == "sigmoid":
            return torch.sigmoid(value)
        return logsigmoid(value) if self.utility == "loss_averse" else -logsigmoid(-value)
