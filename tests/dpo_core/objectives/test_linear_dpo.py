import pytest

from dpo_core.objectives import LinearDPO
from tests.error_maps import error_maps


def loss_and_gradient(errors) -> tuple[float, float, float]:
    output = LinearDPO(beta=1000.0, eta=0.01)(errors)
    output.loss.sum().backward()
    return output.loss.item(), errors.policy_chosen.grad.sum().item(), errors.policy_rejected.grad.sum().item()


def test_loss_and_gradient_by_hand():
    # u = 1000/2 * 0.001 = 0.5: w = 0.5 - 0.4 * 0.5 = 0.3, which is 0.5 - 0.2 * 1000 * 0.001 in the authors' script
    loss, chosen, rejected = loss_and_gradient(error_maps([0.099], [0.2], [0.1], [0.2]))
    assert loss == pytest.approx(0.3 * (0.099 - 0.2))
    assert (chosen, rejected) == pytest.approx((0.3, -0.3))


def test_weight_stays_away_from_zero_and_one():
    assert loss_and_gradient(error_maps([0.09], [0.2], [0.1], [0.2]))[1] == pytest.approx(0.01)
    assert loss_and_gradient(error_maps([0.11], [0.2], [0.1], [0.2]))[1] == pytest.approx(0.99)
