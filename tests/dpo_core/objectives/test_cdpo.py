import math

import pytest

from dpo_core.objectives import CDPO, DPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # u = 1.5 as in DPO; nine labels in ten are right
    output = CDPO(beta=1000.0, label_smoothing=0.1)(error_maps([0.099], [0.202], [0.1], [0.2]))
    right, wrong = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert output.loss.item() == pytest.approx(0.9 * right + 0.1 * wrong)


def test_without_smoothing_it_is_dpo():
    maps = error_maps([0.09, 0.12], [0.2, 0.21], [0.1, 0.1], [0.2, 0.2])
    assert CDPO(label_smoothing=0.0)(maps).loss.tolist() == DPO()(maps).loss.tolist()


def test_a_margin_beyond_what_the_labels_are_worth_is_pulled_back():
    def slope(u: float) -> float:
        maps = error_maps([0.1 - u / 500], [0.2], [0.1], [0.2])
        CDPO(beta=1000.0, label_smoothing=0.1)(maps).loss.sum().backward()
        return maps.policy_chosen.grad.sum().item()

    best = math.log(9)  # sigmoid(u) = 0.9
    assert slope(best) == pytest.approx(0, abs=1e-9)
    assert slope(best - 0.1) > 1
    assert slope(best + 0.1) < -1


def test_more_than_half_of_the_labels_cannot_be_wrong():
    with pytest.raises(ValueError, match="label_smoothing"):
        CDPO(label_smoothing=0.5)
