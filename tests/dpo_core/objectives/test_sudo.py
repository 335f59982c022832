import math

import pytest

from dpo_core.objectives import SUDO
from tests.error_maps import error_maps


def test_loss_by_hand():
    output = SUDO(beta=1000.0, lambda1=0.25, lambda2=2.0)(error_maps([0.099], [0.202], [0.1], [0.2]))
    preference = math.log(1 + math.exp(-1.5))
    assert output.loss.item() == pytest.approx(0.25 * preference + 2 * 0.099)
    assert output.metrics["dpo_loss"].item() == pytest.approx(preference)


def test_defaults_are_the_halves_of_the_original():
    output = SUDO()(error_maps([0.3], [0.5], [0.3], [0.5]))
    assert output.loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * 0.3)


def test_it_asks_for_made_rejected_images():
    assert SUDO.rejected == "made"
