import math
from typing import Any

import pytest
import torch

from dpo_core.diagnostics import accuracy
from dpo_core.objectives import DPO, PairErrors


def errors(chosen: Any, rejected, reference_chosen, reference_rejected, dtype=torch.float32) -> Any:
    def full(values):
        return torch.tensor(values, dtype=dtype)[:, None, None].expand(-1, 2, 3).clone().requires_grad_()

    maps = [full(v) for v in (chosen, rejected, reference_chosen, reference_rejected)]
    return PairErrors(torch.zeros(len(chosen), dtype=torch.long), *maps)


def test_loss_by_hand():
    # chosen got better by 0.001, rejected worse by 0.002: u = -1000/2 * (-0.001 - 0.002) = 1.5
    output = DPO(beta=1000.0)(errors([0.099], [0.202], [0.1], [0.2], torch.float64))
    assert output.margin is not None
    assert output.margin.item() == pytest.approx(1.5)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_policy_equal_to_reference_gives_log_two_and_half_accuracy():
    output = DPO(beta=5000.0)(errors([0.3, 0.7], [0.5, 0.1], [0.3, 0.7], [0.5, 0.1]))
    assert output.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)
    assert output.margin is not None
    assert accuracy(output.margin).tolist() == [0.5, 0.5]


def test_each_pair_has_its_own_loss_so_the_mean_is_taken_outside():
    output = DPO(beta=1000.0)(errors([0.09, 0.12], [0.2, 0.2], [0.1, 0.1], [0.2, 0.2]))
    margins = output.margin
    assert margins is not None
    assert margins.tolist() == pytest.approx([5.0, -10.0], rel=1e-4)
    inside = -torch.nn.functional.logsigmoid(margins.mean())
    assert output.loss.mean().item() > inside.item() + 1


def test_gradient_pushes_chosen_error_down_and_rejected_error_up():
    maps = errors([0.1], [0.2], [0.1], [0.2])
    DPO(beta=1000.0)(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.sum().item() == pytest.approx(1000 / 4)
    assert maps.policy_rejected.grad.sum().item() == pytest.approx(-1000 / 4)


def test_gradient_agrees_with_finite_differences():
    def loss(chosen, rejected):
        fixed = errors([0.1], [0.2], [0.12], [0.19], torch.float64)
        maps = PairErrors(fixed.timesteps, chosen, rejected, fixed.reference_chosen, fixed.reference_rejected)
        return DPO(beta=50.0)(maps).loss

    start = errors([0.1], [0.2], [0.1], [0.2], torch.float64)
    assert torch.autograd.gradcheck(loss, (start.policy_chosen, start.policy_rejected))


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta"):
        DPO(beta=0.0)
