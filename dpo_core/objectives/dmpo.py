"""Divergence minimisation preference optimisation."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class DMPO(Objective):
    """The reverse KL divergence to a soft label (Li et al., arXiv 2507.07510).

    loss = KL(Bernoulli(sigmoid(u)) || Bernoulli(1 - alpha)),  with u as in DPO

    ``cdpo`` is the same divergence the other way round. It is zero at sigmoid(u) = 1 - alpha.
    """

    kind: Literal["dmpo"] = "dmpo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""
    alpha: float = Field(default=0.01, ge=1e-6, lt=0.5)
    """Probability that a label is wrong."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        right = torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-self.alpha))
        wrong = torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(self.alpha))
        return LossOutput(loss=right + wrong, margin=margin)
