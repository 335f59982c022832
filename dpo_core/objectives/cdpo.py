"""Conservative DPO: labels are wrong with a known probability."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class CDPO(Objective):
    """DPO with smoothed labels (E. Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3).

    loss = -(1 - eps) log sigmoid(u) - eps log sigmoid(-u),  with u as in DPO

    It is least at sigmoid(u) = 1 - eps: a margin can be too large, and pairs are pulled back from there.
    """

    kind: Literal["cdpo"] = "cdpo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the labels that are wrong (eps); 0 is DPO."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        eps = self.label_smoothing
        return LossOutput(loss=-(1 - eps) * logsigmoid(margin) - eps * logsigmoid(-margin), margin=margin)
