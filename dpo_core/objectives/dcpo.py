"""Dual-caption preference optimisation."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class DCPO(Objective):
    """DPO with a caption for each image of a pair (Saeidi et al., arXiv 2502.06023).

    loss = -log sigmoid(u),  with u as in DPO, each image's errors given its own caption

    Where the captions come from (DCPO-c generated ones, -p perturbed ones, -h both) is a choice of the data: columns
    ``caption_0`` and ``caption_1``. ``beta`` is the original's ``beta_dpo``, factor one half included.
    """

    kind: Literal["dcpo"] = "dcpo"
    beta: float = Field(default=500.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    captions: ClassVar[Literal["any", "per_image"]] = "per_image"

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        return LossOutput(loss=-logsigmoid(margin), margin=margin)
