"""What composes with every objective: timestep weights, the winner-preserving guard, a margin cap, an SFT term."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dpo_core.noising import Noising
from dpo_core.objectives.base import LossOutput, PairErrors, per_pair
from dpo_core.section import Section

LEAST_SNR = 1e-4
"""A timestep with less signal counts as having this much: at a zero terminal SNR weights would be infinite."""
SNR_GAMMA = 5.0
"""Of the min-SNR paper."""
SNR_POWER = 0.5


class ShapingSection(Section):
    """What is done to errors before, and to losses after, the objective."""

    weighting: Literal["none", "min_snr", "debiased", "snr"] = "none"
    """Weight of a timestep, multiplied into all errors: min-SNR (arXiv 2303.09556), debiased (arXiv 2310.08442), or the
    signal-to-noise ratio to the power ``snr_power``. min-SNR and debiased weigh the error of the noise-free latents
    alike, whatever the network predicts."""
    snr_gamma: float | None = Field(default=None, gt=0)
    """Where ``weighting: min_snr`` caps the signal-to-noise ratio; null is 5."""
    snr_power: float | None = None
    """Exponent of ``weighting: snr``; negative weighs high noise more, null is 0.5."""
    timestep_weights: list[tuple[float, float, float]] = []
    """Further weights over shares of the schedule, as [from, to, weight]; 0 is no noise, 1 pure noise."""
    winner_guard: float | None = Field(default=None, ge=0, lt=1)
    """Diffusion-SDPO (arXiv 2511.03317): scale the rejected image's gradient so that, to first order, the chosen
    image's error still falls by at least this share of what it would fall without it; the authors use 0.2 to 0.9. Null
    switches the guard off."""
    huber_delta: float | None = Field(default=None, gt=0)
    """Count an element's error linearly where its residual is larger than this, and squared below; null always squares
    it. Twice the usual Huber loss, so that ``beta`` means the same for small residuals."""
    margin_cap: float | None = Field(default=None, gt=0)
    """A pair whose margin is larger than this teaches nothing more, apart from the SFT term; null has no cap."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen image's own error, added to the loss (the NLL term of arXiv 2404.19733). At beta / 4 its
    gradient weighs as much as DPO's at the first update."""

    @model_validator(mode="after")
    def _fields_belong_together(self) -> "ShapingSection":
        for name, weighting in (("snr_gamma", "min_snr"), ("snr_power", "snr")):
            if getattr(self, name) is not None and self.weighting != weighting:
                raise ValueError(f"{name} belongs to weighting: {weighting}, not to weighting: {self.weighting}")
        return self

    @model_validator(mode="after")
    def _ranges_are_shares(self) -> "ShapingSection":
        for low, high, weight in self.timestep_weights:
            if not (0 <= low < high <= 1 and weight >= 0):
                raise ValueError(
                    f"timestep_weights: [{low:g}, {high:g}, {weight:g}] is not [from, to, weight] with "
                    "0 <= from < to <= 1 and weight >= 0"
                )
        return self


def timestep_weight(section: ShapingSection, noising: Noising, timesteps: Tensor) -> Float[Tensor, " pairs"] | None:
    """The weight of each pair's timestep, float32; None when all are one.

    As weights of the error of the noise-free latents min-SNR is min(SNR, gamma) and debiased is sqrt(SNR). For the
    error of the prediction both are divided by SNR where the network predicts the noise, by SNR + 1 where it predicts
    v, by 1 / sigma^2 where it predicts the velocity of a flow.
    """
    if section.weighting == "none" and not section.timestep_weights:
        return None
    weight = torch.ones_like(timesteps, dtype=torch.float32)
    if section.weighting != "none":
        snr = noising.snr(timesteps).clamp(min=LEAST_SNR)
        per_signal = noising.error_per_signal_error(timesteps).clamp(min=LEAST_SNR)
        if section.weighting == "min_snr":
            weight = snr.clamp(max=SNR_GAMMA if section.snr_gamma is None else section.snr_gamma) / per_signal
        elif section.weighting == "debiased":
            weight = snr.sqrt() / per_signal
        else:
            weight = snr.pow(SNR_POWER if section.snr_power is None else section.snr_power)
    share = (timesteps / noising.num_timesteps).clamp(max=1 - 1e-6)
    for low, high, factor in section.timestep_weights:
        weight = torch.where((share >= low) & (share < high), weight * factor, weight)
    return weight


def shape_errors(section: ShapingSection, errors: PairErrors, weight: Float[Tensor, " pairs"] | None) -> PairErrors:
    """Errors as the objective sees them: weighted, and with the rejected side held back by the guard."""
    if weight is not None:
        scaled = {
            name: value * weight[:, None, None]
            for name in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "chosen_shift",
                         "residual_product")
            if (value := getattr(errors, name)) is not None
        }  # fmt: skip
        errors = replace(errors, **scaled)
    if section.winner_guard is not None:
        errors = guard_winner(errors, section.winner_guard)
    return errors


def guard_winner(errors: PairErrors, mu: float) -> PairErrors:
    """The same values, with the gradient of the rejected error scaled per pair (arXiv 2511.03317).

    scale = min(1, (1 - mu) |g_w|^2 / <g_w, g_l>), with g_w and g_l the residuals of chosen and rejected; it is one
    where they point away from each other, since then raising one error does not raise the other. A step that follows
    -g_w + scale g_l changes the chosen error by <g_w, -g_w + scale g_l> <= -mu |g_w|^2. The authors' script takes one
    scale for a whole micro-batch; per pair, no chosen error pays for another's, and the batch size plays no part.
    """
    assert errors.policy_rejected is not None
    assert errors.residual_product is not None
    product = per_pair(errors.residual_product.detach()).clamp(min=1e-12)
    scale = ((1 - mu) * per_pair(errors.policy_chosen.detach()) / product).clamp(max=1.0)[:, None, None]
    rejected = errors.policy_rejected
    return replace(errors, policy_rejected=rejected.detach() + scale * (rejected - rejected.detach()))


def shape_loss(section: ShapingSection, errors: PairErrors, output: LossOutput) -> Float[Tensor, " pairs"]:
    """The loss of each pair with margin cap and SFT term."""
    loss = output.loss
    if section.margin_cap is not None:
        assert output.margin is not None
        loss = torch.where(output.margin.detach() > section.margin_cap, loss.detach(), loss)
    if section.sft_weight:
        loss = loss + section.sft_weight * per_pair(errors.policy_chosen)
    return loss
