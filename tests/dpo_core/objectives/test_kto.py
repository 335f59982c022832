import math
from typing import Literal

import pytest
import torch

from dpo_core.objectives import KTO
from tests.error_maps import error_maps


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def one_pair(baseline: float):
    """The chosen image got better by 0.001, the rejected one worse by 0.002."""
    return error_maps([0.099], [0.202], [0.1], [0.2], baseline=torch.tensor(baseline, dtype=torch.float64))


def test_loss_by_hand():
    # 1000/2 * (0.001 - 0.0005) = 0.25 for the chosen image, 1000/2 * (-0.002 - 0.0005) = -1.25 for the rejected one
    output = KTO(beta=1000.0)(one_pair(0.0005))
    assert output.loss.item() == pytest.approx(((1 - sigmoid(0.25)) + (1 - sigmoid(1.25))) / 2)
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(1.5)


def test_baseline_terms_are_the_mean_gain_of_both_images():
    assert KTO().baseline_terms(one_pair(0.0)).tolist() == pytest.approx([(0.001 - 0.002) / 2])


def test_a_baseline_below_zero_counts_as_zero():
    assert KTO()(one_pair(-0.5)).loss.item() == KTO()(one_pair(0.0)).loss.item()


def test_images_are_weighted_by_their_label():
    output = KTO(beta=1000.0, chosen_weight=1.2, rejected_weight=0.7)(one_pair(0.0))
    assert output.loss.item() == pytest.approx((1.2 * (1 - sigmoid(0.5)) + 0.7 * (1 - sigmoid(1.0))) / 2)


@pytest.mark.parametrize(
    ("utility", "of_half", "of_one"),
    [
        ("sigmoid", sigmoid(0.5), sigmoid(1)),
        ("loss_averse", math.log(sigmoid(0.5)), math.log(sigmoid(1))),
        ("risk_seeking", -math.log(sigmoid(-0.5)), -math.log(sigmoid(-1))),
    ],
)
def test_utilities_by_hand(
    utility: Literal["sigmoid", "loss_averse", "risk_seeking"], of_half: float, of_one: float
) -> None:
    output = KTO(beta=1000.0, utility=utility)(one_pair(0.0))
    assert output.loss.item() == pytest.approx(((1 - of_half) + (1 - of_one)) / 2)


def test_policy_equal_to_reference_has_half_the_utility():
    zero = torch.zeros((), dtype=torch.float64)
    assert KTO()(error_maps([0.3], [0.5], [0.3], [0.5], baseline=zero)).loss.item() == 0.5


def test_one_image_alone_can_teach():
    maps = one_pair(0.0)
    KTO(beta=1000.0, chosen_weight=0.0)(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.abs().max().item() < 1e-12
    assert maps.policy_rejected.grad.sum().item() == pytest.approx(-500 / 2 * sigmoid(1) * sigmoid(-1))
