import math

import pytest
import torch

from dpo_core.objectives import MaPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # s e = 0.1 and 0.11: q = 0.1 / (e^0.1 - 1) and 0.11 / (e^0.11 - 1)
    chosen, rejected = 0.1 / (math.exp(0.1) - 1), 0.11 / (math.exp(0.11) - 1)
    output = MaPO(beta=0.1, snr=0.5)(error_maps([0.2], [0.22]))
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(1000 * (chosen - rejected)) == pytest.approx(4.825, abs=1e-3)
    assert output.loss.item() == pytest.approx(0.2 + 0.1 * math.log(1 + math.exp(-output.margin.item())))


def test_equal_errors_leave_log_two_beside_the_error():
    assert MaPO(beta=0.1)(error_maps([0.2], [0.2])).loss.item() == pytest.approx(0.2 + 0.1 * math.log(2))


def test_margin_is_bounded_however_large_the_rejected_error_grows():
    margin = MaPO()(error_maps([0.0], [1e4])).margin
    assert margin is not None
    assert margin.item() == pytest.approx(1000)


@pytest.mark.parametrize("error", [0.0, 1e4])
def test_gradient_is_finite_at_any_error(error: float) -> None:
    maps = error_maps([error], [error], dtype=torch.float32)
    MaPO()(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.isfinite().all()
