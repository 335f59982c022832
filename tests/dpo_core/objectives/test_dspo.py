import pytest
import torch

from dpo_core.objectives import DSPO
from tests.error_maps import error_maps
from tests.recorded import recorded_errors

DSPO_HAND = DSPO(beta=1.0)


def test_loss_by_hand():
    # One element: t = 0, r = 2, p = 1 for the chosen image, so e = 1, shift = 1, r_chosen = 4. The rejected image did
    # better by 3 as well: u = 0, g = 1/2, and (p - t - g (p - r))^2 = (1 + 1/2)^2.
    output = DSPO_HAND(error_maps([1.0], [1.0], [4.0], [4.0], chosen_shift=[1.0]))
    assert output.loss.item() == pytest.approx(2.25)


def test_error_maps_give_the_loss_that_the_predictions_give():
    prediction, reference, target = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    output = DSPO_HAND(recorded_errors(DSPO_HAND, prediction.float(), target.float(), reference.float()))
    assert output.margin is not None
    pull = torch.sigmoid(-output.margin)[:, None, None, None]
    direct = (prediction - target)[:2] - pull * (prediction - reference)[:2]
    torch.testing.assert_close(output.loss.double(), direct.square().mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_the_rejected_image_teaches_through_the_weight_alone():
    # dloss/du = -g' (-e + 2 g shift - shift + r) with g' = 1/4 and the bracket -1 + 1 - 1 + 4 = 3; du/de_l = 1/2
    maps = error_maps([1.0], [1.0], [4.0], [4.0], chosen_shift=[1.0])
    DSPO_HAND(maps).loss.sum().backward()
    assert maps.policy_rejected.grad.sum().item() == pytest.approx(-3 / 4 / 2)


def test_policy_equal_to_reference_has_the_loss_of_the_reference():
    output = DSPO()(error_maps([0.3], [0.5], [0.3], [0.5], chosen_shift=[0.0]))
    assert output.loss.item() == pytest.approx(0.3)
