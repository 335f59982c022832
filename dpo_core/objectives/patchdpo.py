"""PatchDPO."""

from typing import ClassVar, Literal

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair


class PatchDPO(Objective):
    """Errors weighted by the quality of each patch (Huang et al., arXiv 2412.03177), as the original script has it.

    loss = 1/2 mean over space of  (1 - quality_chosen) e_chosen + quality_rejected e_rejected

    The chosen image is the real photo: where the generated one already shows it well, little is left to learn. The
    rejected image is the generated one: its good patches are worth keeping. There is neither a reference nor a sigmoid,
    and so no margin; the weights are not normalised. Quality is in [0, 1], one value per element of the error map.
    """

    kind: Literal["patchdpo"] = "patchdpo"

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    needs_quality: ClassVar[bool] = True
    has_margin: ClassVar[bool] = False

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.policy_rejected is not None
        assert errors.chosen_quality is not None
        assert errors.rejected_quality is not None
        chosen = per_pair((1 - errors.chosen_quality) * errors.policy_chosen)
        rejected = per_pair(errors.rejected_quality * errors.policy_rejected)
        return LossOutput(loss=0.5 * (chosen + rejected))
