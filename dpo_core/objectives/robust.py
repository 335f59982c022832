"""Robust DPO: an unbiased loss under wrong labels."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class RobustDPO(Objective):
    """DPO whose expectation over randomly flipped labels is DPO's on the true ones (rDPO, arXiv 2403.00409).

    loss = [-(1 - eps) log sigmoid(u) + eps log sigmoid(-u)] / (1 - 2 eps),  with u as in DPO

    Unlike ``cdpo`` it takes a flipped label's share away instead of adding it, so it pushes harder than DPO and has no
    least value.
    """

    kind: Literal["robust"] = "robust"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the labels that are wrong (eps); 0 is DPO."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        eps = self.label_smoothing
        loss = (-(1 - eps) * logsigmoid(margin) + eps * logsigmoid(-margin)) / (1 - 2 * eps)
        return LossOutput(loss=loss, margin=margin)
