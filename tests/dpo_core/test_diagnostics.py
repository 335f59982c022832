import math
from typing import Any

import pytest
import torch

from dpo_core.diagnostics import BUCKETS, ChosenErrorAlarm, accuracy, diagnose, gradient_factor
from dpo_core.noising import EpsilonNoising, RectifiedFlow
from dpo_core.objectives import CDPO, DPO, KTO, SFT, SUDO, Hinge, LossOutput, PairErrors
from dpo_core.shaping import ShapingSection, shape_loss
from tests.error_maps import error_maps

NOISING = EpsilonNoising(torch.linspace(0.99, 0.01, 1000))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def factor(objective: Any, errors: PairErrors) -> list[float]:
    output = objective(errors)
    return gradient_factor(output.loss, output.margin).tolist()


def test_every_side_is_told_on_its_own_against_the_reference():
    errors = error_maps([0.12, 0.09], [0.25, 0.2], [0.1, 0.1], [0.2, 0.2])
    output = DPO(beta=1000.0)(errors)
    values = diagnose(errors, output, output.loss, NOISING)
    expected = {
        "chosen_error": [0.12, 0.09],
        "rejected_error": [0.25, 0.2],
        "chosen_reference_error": [0.1, 0.1],
        "chosen_error_vs_reference": [0.02, -0.01],
        "rejected_error_vs_reference": [0.05, 0.0],
        "margin": [15.0, 5.0],
        "implicit_accuracy": [1.0, 1.0],
        "loss": output.loss.tolist(),
    }
    for name, value in expected.items():
        told = values[name]
        assert isinstance(told, torch.Tensor)
        assert told.tolist() == pytest.approx(value), name


def test_nothing_that_is_told_holds_on_to_the_graph():
    errors = error_maps([0.12], [0.25], [0.1], [0.2])
    output = SUDO()(errors)
    values = diagnose(errors, output, output.loss, NOISING)
    assert "dpo_loss" in values
    tensors = [value for told in values.values() for value in (told if isinstance(told, tuple) else (told,))]
    # What the reference made has no graph in a run; these maps have.
    assert [t for t in tensors if t.requires_grad] == [values["chosen_reference_error"]]
    output.loss.sum().backward()
    assert errors.policy_chosen.grad is not None


def test_without_reference_and_margin_only_the_error_is_told():
    errors = error_maps([0.12])
    output = SFT()(errors)
    assert set(diagnose(errors, output, output.loss, NOISING)) == {"loss", "chosen_error"}


def test_ties_count_one_half():
    assert accuracy(torch.tensor([1.0, -1.0, 0.0, -0.0])).tolist() == [1, 0, 0.5, 0.5]


def test_gradient_factor_of_dpo_is_how_sure_it_is_of_the_opposite():
    # u = 0 and 1.5
    errors = error_maps([0.1, 0.099], [0.2, 0.202], [0.1, 0.1], [0.2, 0.2])
    assert factor(DPO(beta=1000.0), errors) == pytest.approx([0.5, sigmoid(-1.5)])


def test_gradient_factor_of_other_objectives_by_hand():
    errors = error_maps([0.1, 0.099], [0.2, 0.202], [0.1, 0.1], [0.2, 0.2], baseline=torch.zeros(()).double())
    assert factor(Hinge(beta=1000.0), errors) == pytest.approx([1, 0])
    assert factor(CDPO(beta=1000.0), errors)[1] == pytest.approx(abs(sigmoid(1.5) - 0.9))
    # KTO at v = 0: each image by a quarter, half the margin each, and the mean of the two
    assert factor(KTO(beta=1000.0), errors)[0] == pytest.approx(0.25 / 2)


def test_gradient_factor_is_zero_where_the_margin_cap_has_silenced_a_pair():
    errors = error_maps([0.1, 0.099], [0.2, 0.202], [0.1, 0.1], [0.2, 0.2])
    output = DPO(beta=1000.0)(errors)
    loss = shape_loss(ShapingSection(margin_cap=1.0), errors, output)
    values = diagnose(errors, output, loss, NOISING)
    told = values["gradient_factor"]
    assert isinstance(told, torch.Tensor)
    assert told.tolist() == pytest.approx([0.5, 0])


def test_gradient_factor_leaves_the_graph_for_the_backward_pass():
    errors = error_maps([0.1], [0.2], [0.1], [0.2])
    output = DPO()(errors)
    assert output.margin is not None
    gradient_factor(output.loss, output.margin)
    output.loss.sum().backward()
    assert errors.policy_chosen.grad.abs().sum() > 0


def test_gradient_factor_without_any_gradient_is_zero():
    with torch.no_grad():
        assert factor(DPO(), error_maps([0.1], [0.2], [0.1], [0.2])) == [0]


@pytest.mark.parametrize(
    ("noising", "timesteps"),
    [
        (NOISING, torch.tensor([0, 199, 200, 999])),
        (RectifiedFlow(), torch.tensor([0.0, 199.9, 200.0, 1000.0])),
    ],
)
def test_margins_are_told_apart_by_fifths_of_the_schedule(noising: Any, timesteps: torch.Tensor) -> None:
    margin = torch.tensor([1.0, 2.0, 3.0, 4.0])
    errors = PairErrors(timesteps, torch.zeros(4, 1, 1))
    values = diagnose(errors, LossOutput(loss=-margin, margin=margin), -margin, noising)
    masks = [values[f"margin_by_timestep/{index}"] for index in range(BUCKETS)]
    counted = [torch.nonzero(mask[1]).flatten().tolist() for mask in masks]
    assert counted == [[0, 1], [2], [], [], [3]]
    assert all(torch.equal(mask[0], margin) for mask in masks)


def window(shift: float) -> dict[str, float]:
    return {"chosen_error_vs_reference": shift, "chosen_reference_error": 0.2}


def test_alarm_is_raised_once_after_three_windows_beyond_the_threshold():
    alarm = ChosenErrorAlarm(threshold=0.05)
    told = [(alarm.check(window(shift)), alarm.just_raised) for shift in (0.02, 0.02, 0.02, 0.02)]
    assert told == [(False, False), (False, False), (True, True), (True, False)]
    assert "more than 5 % above" in alarm.message
    assert "+10.0 %" in alarm.message


def test_one_window_below_the_threshold_switches_the_alarm_off():
    alarm = ChosenErrorAlarm(threshold=0.05)
    assert [alarm.check(window(shift)) for shift in (0.02, 0.02, 0.009, 0.02, 0.02, 0.02)] == [False] * 5 + [True]


def test_a_falling_chosen_error_raises_no_alarm():
    alarm = ChosenErrorAlarm(threshold=0.0)
    assert not any(alarm.check(window(shift)) for shift in (-0.1, 0.0, -0.1, 0.0, 0.0))


def test_without_a_reference_there_is_no_alarm():
    alarm = ChosenErrorAlarm(threshold=0.0, patience=1)
    assert not alarm.check({"chosen_error": 3.0})
    assert not alarm.just_raised
