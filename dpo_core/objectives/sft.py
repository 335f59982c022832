"""Supervised fine-tuning on the chosen images."""

from typing import ClassVar, Literal

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair


class SFT(Objective):
    """The plain denoising loss of DDPM (arXiv 2006.11239, eq. 14) on the chosen image; the control arm of DPO."""

    kind: Literal["sft"] = "sft"

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False
    has_margin: ClassVar[bool] = False

    def __call__(self, errors: PairErrors) -> LossOutput:
        return LossOutput(loss=per_pair(errors.policy_chosen))
