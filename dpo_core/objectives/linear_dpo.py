"""Linear-DPO."""

from typing import ClassVar, Literal

from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair, reference_margin


class LinearDPO(Objective):
    """DPO's gradient with a linear instead of a sigmoid weight (Li et al., arXiv 2605.21123).

    loss = w (e_chosen - e_rejected),  w = clip(1/2 - 0.4 u, eta, 1 - eta) without gradient,  with u as in DPO

    The weight is the original script's, whose 0.2 beta is our 0.4 of u = beta D / 2; ``beta`` means the same. There the
    reference may follow the policy as a moving average; here it stays what the run started from.
    """

    kind: Literal["linear_dpo"] = "linear_dpo"
    beta: float = Field(default=250.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``; the authors' best are 250 to 500."""
    eta: float = Field(default=0.001, ge=0, lt=0.5)
    """Least weight of a pair, and how far its weight stays below one."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        assert errors.reference_chosen is not None
        assert errors.reference_rejected is not None
        weight = (0.5 - 0.4 * margin.detach()).clamp(self.eta, 1 - self.eta)
        # e_chosen - e_rejected, written with the margin that the loss is to be computed from.
        frozen = per_pair(errors.reference_chosen) - per_pair(errors.reference_rejected)
        return LossOutput(loss=weight * (frozen - margin / (0.5 * self.beta)), margin=margin)
