"""A SimPO-like margin without reference."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair


class SimPO(Objective):
    """The reference-free loss with a target margin of SimPO (Meng et al., arXiv 2405.14734), on denoising errors.

    loss = -log sigmoid(u - gamma),  u = (beta / 2) (e_rejected - e_chosen)

    The paper's length-normalised log-likelihood becomes the error, which is a mean over elements. It was published for
    text; nobody reports values for images, and the defaults only keep u near one where errors differ by a tenth.
    """

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(default=20.0, gt=0)
    """Scale of the margin."""
    gamma: float = Field(default=0.5, ge=0)
    """Margin to be reached, in units of u."""

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.policy_rejected is not None
        margin = 0.5 * self.beta * (per_pair(errors.policy_rejected) - per_pair(errors.policy_chosen))
        return LossOutput(loss=-logsigmoid(margin - self.gamma), margin=margin)
