import math

import pytest

from dpo_core.objectives import DPO, RobustDPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # u = 1.5 as in DPO; one label in five is wrong
    output = RobustDPO(beta=1000.0, label_smoothing=0.2)(error_maps([0.099], [0.202], [0.1], [0.2]))
    right, wrong = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert output.loss.item() == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6)


def test_mean_over_flipped_labels_is_dpo_on_the_true_ones():
    true, flipped = (error_maps([0.099], [0.202], [0.1], [0.2]), error_maps([0.202], [0.099], [0.2], [0.1]))
    robust = RobustDPO(beta=1000.0, label_smoothing=0.2)
    mean = 0.8 * robust(true).loss.item() + 0.2 * robust(flipped).loss.item()
    assert mean == pytest.approx(DPO(beta=1000.0)(true).loss.item())
