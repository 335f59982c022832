"""The hinge loss on DPO's margin."""

from typing import ClassVar, Literal

from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class Hinge(Objective):
    """SLiC's hinge (arXiv 2305.10425) on the margin to a reference, as RSO proposes (arXiv 2309.06657).

    loss = max(0, 1 - u),  with u as in DPO

    ``beta`` means the same as in ``dpo``. The SD script of diffusers (``--loss_type hinge``) has no factor one half in
    its margin, so its 2500 is our 5000.
    """

    kind: Literal["hinge"] = "hinge"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference: a pair whose errors differ by 2 / beta teaches nothing more."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        return LossOutput(loss=(1 - margin).relu(), margin=margin)
