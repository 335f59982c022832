"""Diffusion-NPO."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class NPO(Objective):
    """Negative preference optimisation: DPO on flipped labels (Wang et al., arXiv 2505.11245).

    loss = -log sigmoid(u),  with u as in DPO, after chosen and rejected have changed places

    What it trains is not to be sampled from: it takes the place of the unconditional model in classifier-free guidance,
    which leads away from it. All metrics speak of the flipped pair: ``chosen`` is what people liked less. ``beta``
    carries the factor one half; the original script has none, so its 500 is our 1000.
    """

    kind: Literal["npo"] = "npo"
    beta: float = Field(default=1000.0, gt=0)
    """Strength of the pull towards the reference, as in ``dpo``."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    flips_labels: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        return LossOutput(loss=-logsigmoid(margin), margin=margin)
