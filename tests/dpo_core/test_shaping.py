import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dpo_core.noising import EpsilonNoising, RectifiedFlow, VelocityNoising
from dpo_core.objectives import DPO, IPO, KTO, ORPO, SFT, SUDO, Hinge, PairErrors, RobustDPO, SimPO
from dpo_core.recipe import TrainSection
from dpo_core.shaping import ShapingSection, guard_winner, shape_errors, shape_loss, timestep_weight
from dpo_core.step import penalty
from tests.error_maps import error_maps

# Signal-to-noise ratios 9, 1 and 1/9.
ALPHAS_CUMPROD = torch.tensor([0.9, 0.5, 0.1])
EPSILON, VELOCITY, FLOW = EpsilonNoising(ALPHAS_CUMPROD), VelocityNoising(ALPHAS_CUMPROD), RectifiedFlow()
STEPS = torch.tensor([0, 1, 2])
# The same ratios on the straight path: (1 - sigma) / sigma = 3, 1, 1/3.
SIGMAS = torch.tensor([250.0, 500.0, 750.0])


def weights(section: ShapingSection, noising: Any, timesteps: torch.Tensor = STEPS) -> list[float]:
    weight = timestep_weight(section, noising, timesteps)
    assert weight is not None
    assert weight.dtype == torch.float32
    return weight.tolist()


def test_min_snr_by_hand():
    section = ShapingSection(weighting="min_snr", snr_gamma=5.0)
    assert weights(section, EPSILON) == pytest.approx([5 / 9, 1, 1])
    assert weights(section, VELOCITY) == pytest.approx([5 / 10, 1 / 2, (1 / 9) / (10 / 9)])
    assert weights(section, FLOW, SIGMAS) == pytest.approx([5 / 16, 1 / 4, (1 / 9) * (9 / 16)])


def test_debiased_by_hand():
    section = ShapingSection(weighting="debiased")
    assert weights(section, EPSILON) == pytest.approx([1 / 3, 1, 3])
    assert weights(section, VELOCITY) == pytest.approx([3 / 10, 1 / 2, (1 / 3) / (10 / 9)])
    assert weights(section, FLOW, SIGMAS) == pytest.approx([3 / 16, 1 / 4, (1 / 3) * (9 / 16)])


def test_snr_power_by_hand():
    assert weights(ShapingSection(weighting="snr", snr_power=0.5), EPSILON) == pytest.approx([3, 1, 1 / 3])
    assert weights(ShapingSection(weighting="snr", snr_power=-1), FLOW, SIGMAS) == pytest.approx([1 / 9, 1, 9])


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_networks_that_predict_other_things_weigh_the_same_error_of_the_image_alike(weighting: Any) -> None:
    # noisy = a x + b eps. An error d in x is an error -a/b d in eps, -d/b in v, and -d/sigma in the velocity of a flow.
    section = ShapingSection(weighting=weighting)
    snr = torch.tensor([9.0, 1.0, 1 / 9])
    epsilon = torch.tensor(weights(section, EPSILON)) * snr
    velocity = torch.tensor(weights(section, VELOCITY)) / (1 - ALPHAS_CUMPROD)
    flow = torch.tensor(weights(section, FLOW, SIGMAS)) / (SIGMAS / 1000).square()
    torch.testing.assert_close(epsilon, velocity)
    torch.testing.assert_close(epsilon, flow)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "snr"])
@pytest.mark.parametrize("noising", [EpsilonNoising, VelocityNoising])
def test_weights_are_finite_without_any_signal(weighting: Any, noising: Any) -> None:
    section = ShapingSection(weighting=weighting, snr_power=-0.5 if weighting == "snr" else None)
    ends = weights(section, noising(torch.tensor([0.99, 0.0])), torch.tensor([0, 1]))
    assert all(math.isfinite(end) for end in ends)
    if weighting == "min_snr" and noising is EpsilonNoising:
        assert ends[1] == pytest.approx(1)


def test_weights_of_ranges_multiply_and_reach_both_ends():
    section = ShapingSection(timestep_weights=[(0.0, 0.5, 2.0), (0.25, 1.0, 3.0)])
    flow = torch.tensor([0.0, 250.0, 499.0, 500.0, 1000.0])
    assert weights(section, FLOW, flow) == [2, 6, 6, 3, 3]


def test_without_any_weight_nothing_is_multiplied():
    assert timestep_weight(ShapingSection(), EPSILON, STEPS) is None


@pytest.mark.parametrize("wrong", [(0.5, 0.5, 1), (0.7, 0.2, 1), (-0.1, 0.5, 1), (0, 1.5, 1), (0, 1, -1)])
def test_a_range_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="timestep_weights"):
        ShapingSection(timestep_weights=[wrong])


def test_a_weight_multiplies_every_error_and_nothing_else():
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    extra: dict[str, Any] = {"chosen_shift": [6.0, 7.0], "residual_product": [-8.0, 9.0]}
    quality = {"chosen_quality": [0.5, 0.5], "rejected_quality": [0.25, 0.25]}
    errors = error_maps(*([[float(i), float(i)] for i in range(1, 5)]), dtype=torch.float32, **extra, **quality)
    shaped = shape_errors(ShapingSection(), errors, torch.tensor([1.0, 2.0]))
    for name in (*names, *extra):
        assert torch.equal(getattr(shaped, name), getattr(errors, name) * torch.tensor([1.0, 2.0])[:, None, None])
    for name in quality:
        assert torch.equal(getattr(shaped, name), getattr(errors, name))


def residuals(chosen: list[float], rejected: list[float]) -> tuple[torch.Tensor, torch.Tensor, PairErrors]:
    """One pair whose images have one row of elements, and what they err by."""
    first, second = (torch.tensor([[values]], requires_grad=True) for values in (chosen, rejected))
    maps = {"policy_rejected": second.square(), "residual_product": first * second}
    return first, second, PairErrors(torch.zeros(1), first.square(), **maps)


@pytest.mark.parametrize(
    ("chosen", "rejected", "mu", "scale"),
    [
        ([1.0, 0.0], [2.0, 5.0], 0.0, 0.5),  # <w, w> = 1, <w, l> = 2
        ([1.0, 0.0], [2.0, 5.0], 0.6, 0.2),
        ([1.0, 0.0], [0.5, 5.0], 0.0, 1.0),  # 1 / 0.5 is more than one
        ([1.0, 0.0], [-2.0, 5.0], 0.6, 1.0),  # raising the rejected error lowers the chosen one
        ([1.0, 0.0], [0.0, 5.0], 0.6, 1.0),  # neither touches the other
    ],
)
def test_guard_by_hand(chosen: list[float], rejected: list[float], mu: float, scale: float) -> None:
    _, second, errors = residuals(chosen, rejected)
    guarded = guard_winner(errors, mu)
    assert guarded.policy_rejected is not None
    assert torch.equal(guarded.policy_rejected, second.square())
    assert guarded.policy_chosen is errors.policy_chosen
    (held,) = torch.autograd.grad(guarded.policy_rejected.sum(), second)
    assert held.flatten().tolist() == pytest.approx([2 * scale * value for value in rejected])


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_guarded_step_lowers_the_chosen_error_by_at_least_its_share(mu: float) -> None:
    for seed in range(20):
        noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
        first, second, errors = residuals(noise[0].tolist(), (noise[0] + 0.5 * noise[1]).tolist())
        guarded = guard_winner(errors, mu)
        assert guarded.policy_rejected is not None
        loss = guarded.policy_chosen.mean() - guarded.policy_rejected.mean()
        # One network with a shared output: a step for either image moves both predictions alike.
        down = -sum(torch.autograd.grad(loss, (first, second)))
        slope = 2 * first / first.numel()
        falls, alone = (slope * down).sum(), -slope.square().sum()
        assert falls <= mu * alone + 1e-6


GUARDED: list[tuple[Any, bool]] = [
    *(
        (objective, True)
        for objective in (DPO(beta=2), Hinge(beta=2), RobustDPO(beta=2), SUDO(beta=8), ORPO(), SimPO())
    ),
    *((objective, False) for objective in (KTO(beta=2), IPO(beta=2))),
]


@pytest.mark.parametrize(("objective", "keeps"), GUARDED, ids=lambda value: getattr(value, "kind", str(value)))
def test_guard_keeps_its_promise_where_both_errors_weigh_alike(objective: Any, keeps: bool) -> None:
    rises = {None: 0, 0.1: 0}
    for seed in range(60):
        noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
        first, second, errors = residuals(noise[0].tolist(), (2 * noise[0] + noise[1]).tolist())
        assert errors.policy_rejected is not None
        moved = errors.policy_chosen.detach() * noise[2, 0].exp()
        frozen: Any = {"reference_chosen": moved, "reference_rejected": errors.policy_rejected.detach()}
        errors = replace(errors, baseline=torch.tensor(0.0), **frozen)
        for mu in rises:
            loss = objective(errors if mu is None else guard_winner(errors, mu)).loss.sum()
            down = -sum(torch.autograd.grad(loss, (first, second), retain_graph=True))
            rises[mu] += bool((2 * first * down).sum() > 1e-6)
    assert rises[None] > 0 or objective.kind == "orpo"  # whose chosen error outweighs the rest
    assert (rises[0.1] == 0) == keeps


def test_margin_cap_silences_a_pair_beyond_it_and_leaves_its_value():
    maps = error_maps([0.099, 0.1], [0.202, 0.2], [0.1, 0.1], [0.2, 0.2])  # margins 1.5 and 0
    output = DPO(beta=1000.0)(maps)
    loss = shape_loss(ShapingSection(margin_cap=1.0), maps, output)
    assert loss.tolist() == output.loss.tolist()
    loss.sum().backward()
    assert maps.policy_chosen.grad.sum(dim=(1, 2)).tolist() == pytest.approx([0, 250])


def test_sft_term_by_hand():
    maps = error_maps([0.3], dtype=torch.float32)
    loss = shape_loss(ShapingSection(sft_weight=0.5), maps, SFT()(maps))
    assert loss.item() == pytest.approx(0.3 + 0.5 * 0.3)


def test_sft_term_at_a_quarter_of_beta_weighs_as_much_as_dpo_at_first():
    maps = error_maps([0.1], [0.2], [0.1], [0.2])
    output = DPO(beta=1000.0)(maps)
    (preference,) = torch.autograd.grad(output.loss.sum(), maps.policy_chosen, retain_graph=True)
    both = shape_loss(ShapingSection(sft_weight=250.0), maps, output)
    (together,) = torch.autograd.grad(both.sum(), maps.policy_chosen)
    torch.testing.assert_close(together, 2 * preference)


def test_penalty_is_the_square_continued_by_its_tangent():
    residual = torch.tensor([0.0, 0.5, 1.0, 3.0, -3.0]).view(1, 5, 1, 1).requires_grad_()
    value = penalty(residual, 1.0)
    assert value.flatten().tolist() == pytest.approx([0, 0.25, 1, 5, 5])
    (slope,) = torch.autograd.grad(value.sum(), residual)
    assert slope.flatten().tolist() == pytest.approx([0, 1, 2, 2, -2])
    torch.testing.assert_close(value, 2 * torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), "none"))
    assert torch.equal(penalty(residual, None), residual.square())


@pytest.mark.parametrize(
    ("objective", "shaping", "complaint"),
    [
        ("sft", {"winner_guard": 0.5}, "winner_guard needs a margin, which objective sft does not have"),
        ("patchdpo", {"margin_cap": 1.0}, "margin_cap needs a margin, which objective patchdpo does not have"),
        ("dpo", {"snr_gamma": 5.0}, "snr_gamma belongs to weighting: min_snr, not to weighting: none"),
        (
            "dpo",
            {"weighting": "snr", "snr_gamma": 1.0},
            "snr_gamma belongs to weighting: min_snr, not to weighting: snr",
        ),
        ("dspo", {"huber_delta": 1.0}, "huber_delta is not possible with objective dspo"),
        ("dpo", {"huber_delta": 1.0, "winner_guard": 0.5}, "huber_delta is not possible with shaping.winner_guard"),
    ],
)
def test_what_does_not_fit_an_objective_is_refused_before_anything_runs(
    objective: str, shaping: dict[str, Any], complaint: str
) -> None:
    config = {"data": {"paths": ["x"]}, "objective": {"kind": objective}, "shaping": shaping}
    with pytest.raises(ValidationError, match=complaint):
        TrainSection.model_validate(config)
