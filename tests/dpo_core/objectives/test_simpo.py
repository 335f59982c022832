import math

import pytest

from dpo_core.objectives import SimPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # u = 20/2 * (0.5 - 0.4) = 1, half a unit beyond what is asked for
    output = SimPO(beta=20.0, gamma=0.5)(error_maps([0.4], [0.5]))
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_margin_says_who_is_preferred_whatever_is_asked_for():
    output = SimPO(gamma=5.0)(error_maps([0.4], [0.5]))
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(1.0)
