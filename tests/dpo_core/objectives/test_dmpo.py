import math

import pytest

from dpo_core.objectives import DMPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # u = 0: the divergence of a fair coin from one that is right three times in four
    output = DMPO(alpha=0.25)(error_maps([0.1], [0.2], [0.1], [0.2]))
    assert output.loss.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_it_is_zero_where_the_policy_is_as_sure_as_the_labels_are_right():
    # u = log 3: sigmoid(u) = 3/4
    maps = error_maps([0.1 - math.log(3) / 500], [0.2], [0.1], [0.2])
    loss = DMPO(beta=1000.0, alpha=0.25)(maps).loss
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.sum().backward()
    assert maps.policy_chosen.grad.sum().item() == pytest.approx(0, abs=1e-9)


def test_a_margin_far_out_has_a_finite_loss_and_gradient():
    maps = error_maps([0.0, 9.0], [9.0, 0.0], [1.0, 1.0], [1.0, 1.0])
    loss = DMPO(beta=5000.0)(maps).loss
    assert loss.tolist() == pytest.approx([-math.log(0.99), -math.log(0.01)])
    loss.sum().backward()
    assert maps.policy_chosen.grad.isfinite().all()
