from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from dpo_core.noising import EpsilonNoising, RectifiedFlow, VelocityNoising, flow_of, noising_of

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


def test_rectified_flow_by_hand():
    flow, latents, noise = RectifiedFlow(), torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)
    assert flow.add_noise(latents, noise, torch.tensor([250.0])).item() == pytest.approx(0.75 * 2 - 0.25)
    assert flow.target(latents, noise, torch.tensor([250.0])).item() == -3.0
    assert flow.snr(torch.tensor([250.0])).item() == pytest.approx(9.0)


def test_rectified_flow_agrees_with_the_scheduler_of_diffusers_at_its_shifted_noise_levels():
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = flow_of(dict(scheduler.config), patch=2)
    share = torch.tensor([0.001, 0.25, 0.5, 0.999], dtype=torch.float64)
    timesteps = flow.timesteps_at(share)
    torch.testing.assert_close(timesteps, scheduler.timesteps.flip(0)[(share * 1000).round().long() - 1])
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = scheduler.scale_noise(latents, scheduler.timesteps.flip(0)[(share * 1000).round().long() - 1], noise)
    torch.testing.assert_close(flow.add_noise(latents, noise, timesteps), theirs)


def test_a_shift_that_depends_on_the_size_must_be_asked_for_one():
    flow = flow_of({"shift": 3.0, "use_dynamic_shifting": True}, patch=2)
    with pytest.raises(AssertionError, match="at_size"):
        flow.timesteps_at(torch.zeros(1, dtype=torch.float64))
    linear = {"shift": 3.0, "use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 2.0}
    assert flow_of(linear, patch=2).at_size(32, 32).shift == pytest.approx(2.0)


def test_a_scheduler_without_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"DDPMScheduler.*not one of flow matching"):
        flow_of(dict(CONFIG) | {"_class_name": "DDPMScheduler"}, patch=2)
