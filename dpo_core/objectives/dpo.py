"""Diffusion-DPO."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, accuracy, per_pair


class DPO(Objective):
    """Direct preference optimisation of a diffusion model (Wallace et al., arXiv 2311.12908, eq. 14).

    loss = -log sigmoid(u),  u = -(beta / 2) [(e_chosen - r_chosen) - (e_rejected - r_rejected)]

    with e and r the mean squared denoising errors of policy and reference. The factor one half is the paper's, whose
    ``beta`` this is (2000 for SD1.5, 5000 for SDXL): the Salesforce, DCPO and SUDO scripts and the SDXL script of
    diffusers mean the same by ``beta_dpo``; the SD script of diffusers leaves the half out, so its 2500 is our 5000.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference; larger stays closer to it."""

    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen image's own denoising error, added to the loss (the NLL term of arXiv 2404.19733).

    It keeps that error from rising while the margin grows; at beta / 4 its gradient weighs as much as DPO's at step 0.
    """

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.policy_rejected is not None
        assert errors.reference_chosen is not None
        assert errors.reference_rejected is not None
        chosen = per_pair(errors.policy_chosen) - per_pair(errors.reference_chosen)
        rejected = per_pair(errors.policy_rejected) - per_pair(errors.reference_rejected)
        margin = -0.5 * self.beta * (chosen - rejected)
        return LossOutput(
            loss=-logsigmoid(margin) + self.sft_weight * per_pair(errors.policy_chosen),
            metrics={
                "margin": margin.detach(),
                "implicit_accuracy": accuracy(margin.detach()),
                "chosen_error_vs_reference": chosen.detach(),
                "rejected_error_vs_reference": rejected.detach(),
            },
        )
