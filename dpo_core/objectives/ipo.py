"""Identity preference optimisation."""

from typing import ClassVar, Literal

from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class IPO(Objective):
    """Regression of the margin to a fixed value (Azar et al., arXiv 2310.12036, eq. 17).

    The paper's loss is (h - 1 / (2 tau))^2, with h the log-ratio of the pair. Here h = D, the difference of error
    differences as in DPO (u = beta D / 2), and tau = beta / 2. Multiplied by tau^2, so that neither its value nor its
    gradient depends on the units of D:

    loss = tau^2 (D - 1 / (2 tau))^2 = (u - 1/2)^2

    The SD script of diffusers means tau by its ``beta``, as in its DPO; it stops at the first step, since it reads the
    flag under a wrong name.
    """

    kind: Literal["ipo"] = "ipo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference: pairs are led to a difference of 1 / beta in their errors."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        return LossOutput(loss=(margin - 0.5).square(), margin=margin)
