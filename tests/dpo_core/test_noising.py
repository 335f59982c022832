from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from dpo_core.noising import EpsilonNoising, VelocityNoising, noising_of

CONFIG = dict(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config)


def draws():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 1, 500, 998, 999])


def test_noising_agrees_with_the_scheduler_of_diffusers():
    latents, noise, timesteps = draws()
    scheduler: Any = DDPMScheduler.from_config(CONFIG)
    ours = noising_of(CONFIG)
    torch.testing.assert_close(
        ours.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    assert torch.equal(ours.target(latents, noise, timesteps), noise)


def test_velocity_target_agrees_with_the_scheduler_of_diffusers():
    latents, noise, timesteps = draws()
    config = CONFIG | {"prediction_type": "v_prediction"}
    ours = noising_of(config)
    assert isinstance(ours, VelocityNoising)
    scheduler: Any = DDPMScheduler.from_config(config)
    expected = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(ours.target(latents, noise, timesteps), expected)


def test_signal_and_noise_by_hand():
    noising = EpsilonNoising(torch.tensor([0.64]))
    one = torch.ones(1, 1, 1, 1)
    assert noising.add_noise(one, one, torch.tensor([0])).item() == pytest.approx(0.8 + 0.6)
    assert VelocityNoising(torch.tensor([0.64])).target(one, one, torch.tensor([0])).item() == pytest.approx(0.8 - 0.6)


def test_timesteps_cover_the_whole_range_and_nothing_else():
    uniform = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert EpsilonNoising(torch.ones(1000)).timesteps_at(uniform).tolist() == [0, 499, 500, 999]


def test_an_unknown_prediction_type_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"'sample'.*epsilon.*v_prediction"):
        noising_of(CONFIG | {"prediction_type": "sample"})
