"""Diffusion-DPO."""

from typing import ClassVar, Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, reference_margin


class DPO(Objective):
    """Direct preference optimisation of a diffusion model (Wallace et al., arXiv 2311.12908, eq. 14).

    loss = -log sigmoid(u),  u = -(beta / 2) [(e_chosen - r_chosen) - (e_rejected - r_rejected)]

    with e and r the mean squared denoising errors of policy and reference. The factor one half is the paper's, whose
    ``beta`` this is (2000 for SD1.5, 5000 for SDXL): the Salesforce, DCPO and SUDO scripts, the SDXL script of
    diffusers and diffengine mean the same by ``beta_dpo``. The SD script of diffusers leaves the half out, so its 2500
    is our 5000. Where errors are summed over elements instead, as in some trainers, beta is smaller by their number:
    5000 is 0.305 for SD1.5 at 512 pixels (4x64x64 latents). The mean over pairs is taken outside of the logarithm.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=2000.0, gt=0)
    """Strength of the pull towards the reference; larger stays closer to it."""

    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        margin = 0.5 * self.beta * reference_margin(errors)
        return LossOutput(loss=-logsigmoid(margin), margin=margin)
