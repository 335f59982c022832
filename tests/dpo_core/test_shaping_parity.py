"""Weights and losses that the DPO of diffengine recorded; tests/assets/parity/diffengine_loss/NOTICE has the source."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.nn.functional import logsigmoid

from dpo_core.noising import EpsilonNoising, noising_of
from dpo_core.objectives import DPO
from dpo_core.shaping import ShapingSection, shape_errors, timestep_weight
from tests.recorded import LossCase, recorded_errors

WEIGHTINGS: dict[str, Any] = {"l2": "none", "snr_l2": "min_snr", "debias": "debiased", "huber": "none"}
PLAIN = [0, 1, 2, 4, 5, 6]


def noising_of_case(case: LossCase) -> EpsilonNoising:
    scheduler: Any = DDPMScheduler(**case.hyper["scheduler"], prediction_type=case.hyper["prediction_type"])
    return noising_of(dict(scheduler.config))


def margins_and_loss(case: LossCase, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What our step, shaping and objective make of the recorded predictions; ``weight`` in place of our own."""
    noising, timesteps, delta = noising_of_case(case), case["timesteps"], case.hyper["huber_delta"]
    # Our Huber loss is twice the usual one, so that beta means the same for small residuals.
    objective = DPO(beta=case.hyper["beta_dpo"] / (2 if delta else 1))
    section = ShapingSection(
        weighting=WEIGHTINGS[case.hyper["loss_module"]], snr_gamma=case.hyper["snr_gamma"], huber_delta=delta
    )
    target = noising.target(case["latents"], case["noise"], timesteps)
    errors = recorded_errors(objective, case.prediction, target, case["ref_pred"], timesteps, huber_delta=delta)
    if weight is None:
        weight = timestep_weight(section, noising, errors.timesteps)
    output = objective(shape_errors(section, errors, weight))
    assert output.margin is not None
    return output.margin, output.loss


@pytest.mark.parametrize("variant", PLAIN)
def test_margins_are_those_of_diffengine(variant: int) -> None:
    # Targets of noise and v, no weight, min-SNR, debiased, Huber: with their mean inside of the logarithm our margins
    # give their loss and their gradient.
    case = LossCase("diffengine_loss", variant)
    margin, _ = margins_and_loss(case)
    theirs = -logsigmoid(margin.mean())
    case.is_loss(theirs)
    case.is_gradient(case.gradient(theirs))


@pytest.mark.parametrize("variant", PLAIN)
def test_mean_over_pairs_is_outside_of_the_logarithm_and_not_inside(variant: int) -> None:
    # Why: inside, every pair weighs the same however well it is told apart already, and the loss of a pair depends on
    # the batch it is in. diffusers had the same defect until January 2024.
    case = LossCase("diffengine_loss", variant)
    margin, loss = margins_and_loss(case)
    assert loss.mean() > case["loss"] + 0.01
    inside, outside = (torch.autograd.grad(value, margin, retain_graph=True)[0] for value in (
        -logsigmoid(margin.mean()), loss.mean()
    ))  # fmt: skip
    assert torch.equal(inside, inside[:1].expand(4))
    torch.testing.assert_close(outside, -torch.sigmoid(-margin) / 4)


def test_min_snr_of_v_prediction_caps_the_ratio_itself_and_not_the_ratio_plus_one() -> None:
    # Theirs: min(SNR + 1, gamma) / (SNR + 1). The paper's weight is min(SNR, gamma) for the error of the noise-free
    # image, and the error of v is SNR + 1 times that. At high noise theirs is one and ours falls with the SNR.
    case = LossCase("diffengine_loss", 3)
    noising, timesteps = noising_of_case(case), case["timesteps"][:4]
    snr = noising.snr(timesteps)
    theirs = (snr + 1).clamp(max=5) / (snr + 1)
    value = -logsigmoid(margins_and_loss(case, theirs)[0].mean())
    case.is_loss(value)
    case.is_gradient(case.gradient(value))
    ours = timestep_weight(ShapingSection(weighting="min_snr"), noising, timesteps)
    assert ours is not None
    torch.testing.assert_close(ours, snr.clamp(max=5) / (snr + 1))
    noisy = timesteps > 500
    assert (theirs[noisy] == 1).all()
    assert (ours[noisy] < 0.5).all()
