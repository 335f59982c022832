import math

import pytest
import torch

from dpo_core.diagnostics import accuracy
from dpo_core.objectives import DPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # chosen got better by 0.001, rejected worse by 0.002: u = -1000/2 * (-0.001 - 0.002) = 1.5
    output = DPO(beta=1000.0)(error_maps([0.099], [0.202], [0.1], [0.2]))
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(1.5)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_policy_equal_to_reference_gives_log_two_and_half_accuracy():
    output = DPO(beta=5000.0)(error_maps([0.3, 0.7], [0.5, 0.1], [0.3, 0.7], [0.5, 0.1], dtype=torch.float32))
    assert output.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert output.margin is not None
    assert accuracy(output.margin).tolist() == [0.5, 0.5]


def test_each_pair_has_its_own_loss_so_the_mean_is_taken_outside():
    output = DPO(beta=1000.0)(error_maps([0.09, 0.12], [0.2, 0.2], [0.1, 0.1], [0.2, 0.2]))
    margins = output.margin
    assert margins is not None
    assert margins.tolist() == pytest.approx([5.0, -10.0], rel=1e-4)
    inside = -torch.nn.functional.logsigmoid(margins.mean())
    assert output.loss.mean().item() > inside.item() + 1


def test_gradient_pushes_chosen_error_down_and_rejected_error_up():
    maps = error_maps([0.1], [0.2], [0.1], [0.2])
    DPO(beta=1000.0)(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.sum().item() == pytest.approx(1000 / 4)
    assert maps.policy_rejected.grad.sum().item() == pytest.approx(-1000 / 4)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta"):
        DPO(beta=0.0)
