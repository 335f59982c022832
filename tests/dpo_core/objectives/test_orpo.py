import math

import pytest

from dpo_core.objectives import ORPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    output = ORPO(beta=0.1)(error_maps([0.2], [0.5]))
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(0.3)
    assert output.loss.item() == pytest.approx(0.2 + 0.1 * math.log(1 + math.exp(-0.3)))


def test_a_smaller_chosen_error_is_rewarded_twice():
    maps = error_maps([0.3], [0.3])
    ORPO(beta=0.5)(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.sum().item() == pytest.approx(1 + 0.5 / 2)
    assert maps.policy_rejected.grad.sum().item() == pytest.approx(-0.5 / 2)
