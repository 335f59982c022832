"""SUDO, or Self-DPO."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair, reference_margin


class SUDO(Objective):
    """DPO against made rejected images, beside supervised fine-tuning (arXiv 2504.14534).

    loss = lambda1 (-log sigmoid(u)) + lambda2 e_chosen,  with u as in DPO

    ``beta`` is the original's ``beta_dpo``, factor one half included (the paper's C is -beta / 2). What the rejected
    image is made of is a choice of the data.
    """

    kind: Literal["sudo"] = "sudo"
    beta: float = Field(default=5000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""
    lambda1: float = Field(default=0.5, ge=0)
    """Weight of the preference."""
    lambda2: float = Field(default=0.5, ge=0)
    """Weight of the chosen image's own error."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    rejected: ClassVar[Literal["any", "made"]] = "made"

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        preference = -logsigmoid(margin)
        loss = self.lambda1 * preference + self.lambda2 * per_pair(errors.policy_chosen)
        return LossOutput(loss=loss, margin=margin, metrics={"dpo_loss": preference})
