"""Margin-aware preference optimisation."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_core.objectives.base import LossOutput, Objective, PairErrors, per_pair

STEPS = 1000
"""Length of the noise schedule that the margin is multiplied by."""


class MaPO(Objective):
    """A bounded margin without any reference, beside the chosen error (Hong et al., arXiv 2406.06424).

    loss = e_chosen - beta log sigmoid(u),  u = 1000 [q(e_chosen) - q(e_rejected)],  q(e) = s e / (exp(s e) - 1)

    q falls from one at no error to zero, which bounds u. ``beta`` and s (``snr``) are the flags ``beta_mapo`` and
    ``snr_value`` of the original script.
    """

    kind: Literal["mapo"] = "mapo"
    beta: float = Field(default=0.1, gt=0)
    """Weight of the margin against the chosen image's own error."""
    snr: float = Field(default=0.5, gt=0)
    """The constant signal-to-noise ratio s by which errors are measured."""

    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True

    def __call__(self, errors: PairErrors) -> LossOutput:
        assert errors.policy_rejected is not None
        chosen = per_pair(errors.policy_chosen)
        margin = STEPS * (self._score(chosen) - self._score(per_pair(errors.policy_rejected)))
        return LossOutput(loss=chosen - self.beta * logsigmoid(margin), margin=margin)

    def _score(self, error: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        scaled = (self.snr * error).clamp(1e-12, 80.0)  # where q is one, and zero, in float32
        return scaled / torch.expm1(scaled)
