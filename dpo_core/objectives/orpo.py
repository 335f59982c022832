"""Odds-ratio preference optimisation."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair


class ORPO(Objective):
    """Supervised fine-tuning with a preference term and no reference (Hong et al., arXiv 2403.07691).

    loss = e_chosen - beta log sigmoid(u),  u = e_rejected - e_chosen

    An error stands for a negative log-likelihood, and the log-odds ratio is shortened to the log-likelihood ratio, as
    in the ORPO script of diffusers. That script computes u with the other sign, which rewards a larger chosen error;
    ours is the paper's.
    """

    kind: Literal["orpo"] = "orpo"
    beta: float = Field(default=0.1, gt=0)
    """Weight of the preference term (the paper's lambda, the script's ``beta_orpo``)."""

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.policy_rejected is not None
        chosen = per_pair(errors.policy_chosen)
        margin = per_pair(errors.policy_rejected) - chosen
        return LossOutput(loss=chosen - self.beta * logsigmoid(margin), margin=margin)
