from typing import Any, get_args

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from pydantic import TypeAdapter, ValidationError

from dpo_core.noising import EpsilonNoising, RectifiedFlow
from dpo_core.timesteps import AnyTimesteps, Cubic, Discrete, Emphasis, LogitNormal, Uniform

GRID = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
ENDS = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
NOISING = EpsilonNoising(torch.ones(1000))
EVERY = [cls() for cls in get_args(get_args(AnyTimesteps)[0])]


def share_in(section: Any, low: float, high: float) -> float:
    """How many of evenly spread draws end up in [low, high)."""
    share = section.share(GRID)
    return ((share >= low) & (share < high)).double().mean().item()


@pytest.mark.parametrize("section", EVERY, ids=lambda section: section.kind)
def test_every_share_is_one_that_a_schedule_has(section: Any) -> None:
    for share in (section.share(GRID), section.share(ENDS)):
        assert share.shape in (GRID.shape, ENDS.shape)
        assert share.dtype == torch.float64
        assert ((share >= 0) & (share < 1)).all()
        steps = NOISING.timesteps_at(share)
        assert ((steps >= 0) & (steps <= 999)).all()
        assert RectifiedFlow().timesteps_at(share).isfinite().all()


def test_kinds_name_their_section():
    adapter = TypeAdapter(AnyTimesteps)
    assert [adapter.validate_python({"kind": section.kind}) for section in EVERY] == EVERY


def test_uniform_keeps_to_its_range():
    share = Uniform(low=0.1, high=0.2).share(torch.tensor([0.0, 0.5, 1 - 2**-53]).double())
    assert share.tolist() == pytest.approx([0.1, 0.15, 0.2])
    assert torch.equal(Uniform().share(GRID), GRID)


@pytest.mark.parametrize("section", [Uniform, Emphasis])
def test_a_range_that_is_empty_is_refused(section: Any) -> None:
    with pytest.raises(ValidationError, match=r"low \(0.8\) must be below high \(0.3\)"):
        section(low=0.8, high=0.3)


@pytest.mark.parametrize(("low", "high"), [(0.75, 1.0), (0.0, 0.25), (0.25, 0.75)])
def test_emphasis_draws_a_level_of_its_range_five_times_as_often(low: float, high: float) -> None:
    section = Emphasis(low=low, high=high, factor=5.0)
    inside, width = share_in(section, low, high), high - low
    assert inside / width == pytest.approx(5 * (1 - inside) / (1 - width), rel=1e-2)
    # Alike within the range, and alike outside of it.
    middle = (low + high) / 2
    assert share_in(section, low, middle) == pytest.approx(inside / 2, abs=2e-4)
    if low > 0:
        assert share_in(section, 0, low / 2) == pytest.approx(share_in(section, low / 2, low), abs=2e-4)
    if high < 1:
        beyond = (1 + high) / 2
        assert share_in(section, high, beyond) == pytest.approx(share_in(section, beyond, 1), abs=2e-4)


def test_emphasis_by_hand():
    # [0.5, 1) three times as often: a quarter of the draws is below 0.5
    share = Emphasis(low=0.5, high=1.0, factor=3.0).share(torch.tensor([0.125, 0.25, 0.625]).double())
    assert share.tolist() == pytest.approx([0.25, 0.5, 0.75])


def test_cubic_by_hand():
    assert Cubic().share(torch.tensor([0.5, 0.9]).double()).tolist() == pytest.approx([0.875, 0.271])


def test_discrete_levels_are_those_of_turbo_models():
    steps = NOISING.timesteps_at(Discrete(steps=4).share(GRID))
    assert steps.unique().tolist() == [249, 499, 749, 999]
    assert [(steps == level).double().mean().item() for level in (249, 499, 749, 999)] == [0.25] * 4


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 1000])
def test_discrete_levels_are_those_that_ddim_visits_from_the_noisy_end(steps: int) -> None:
    scheduler: Any = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ours = NOISING.timesteps_at(Discrete(steps=steps).share(GRID)).unique()
    assert ours.tolist() == sorted(scheduler.timesteps.tolist())


def test_logit_normal_by_hand():
    # z = -1, 0, 1 at these quantiles of the normal distribution
    quantiles = torch.tensor([0.15865525, 0.5, 0.84134475]).double()
    assert LogitNormal().share(quantiles).tolist() == pytest.approx([0.26894, 0.5, 0.73106], abs=1e-5)
    assert LogitNormal(mean=1.0, std=0.5).share(quantiles).tolist() == pytest.approx(
        torch.tensor([0.5, 1.0, 1.5]).sigmoid().tolist(), abs=1e-5
    )
