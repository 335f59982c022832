"""Direct score preference optimisation."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair, reference_margin


class DSPO(Objective):
    """Score matching against a preferred score (Zhu et al., "DSPO", ICLR 2025).

    loss = mean over elements of (p - t - g (p - r))^2,  g = beta (1 - sigmoid(u)),  with u as in DPO

    with p and r the predictions of policy and reference for the chosen image, and t the target. Since r - t =
    (p - t) - (p - r), squaring gives it from error maps alone:

    loss = (1 - g) e_chosen + (g^2 - g) shift + g r_chosen,  shift = mean (p - r)^2

    As in the original script, the gradient also flows through g; without that nothing would teach the policy about the
    rejected image. ``beta`` is the script's ``beta_dpo``, in both places. Its other formula for SDXL drops the target,
    and switches between two forms where the mean shift of the batch passes 0.1; it is left out.
    """

    kind: Literal["dspo"] = "dspo"
    beta: float = Field(default=0.001, gt=0)
    """Weight of the preference's score; the authors search 0.001 to 0.05."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    needs_shift: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.chosen_shift is not None
        assert errors.reference_chosen is not None
        margin = 0.5 * self.beta * reference_margin(errors)
        pull = self.beta * torch.sigmoid(-margin)
        shift, frozen = per_pair(errors.chosen_shift), per_pair(errors.reference_chosen)
        loss = (1 - pull) * per_pair(errors.policy_chosen) + (pull.square() - pull) * shift + pull * frozen
        return LossOutput(loss=loss, margin=margin)
