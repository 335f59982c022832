import pytest

from dpo_core.objectives import IPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    # u = 1.5 as in DPO: one away from where it shall be
    output = IPO(beta=1000.0)(error_maps([0.099], [0.202], [0.1], [0.2]))
    assert output.loss.item() == pytest.approx(1.0)


def test_pairs_are_led_to_a_difference_of_one_over_beta():
    assert IPO(beta=1000.0)(error_maps([0.099], [0.2], [0.1], [0.2])).loss.item() == pytest.approx(0, abs=1e-12)


def test_it_is_the_formula_of_paper_and_diffusers_script_in_other_units():
    # Theirs: (D - 1 / (2 tau))^2 with D = 0.003 and tau = 500 = beta / 2. Ours is multiplied by tau squared: the same
    # least value and the same direction, but of order one instead of 1e-6, beside whatever is added to it or clips it.
    theirs = (0.003 - 1 / (2 * 500)) ** 2
    ours = IPO(beta=1000.0)(error_maps([0.099], [0.202], [0.1], [0.2])).loss.item()
    assert theirs == pytest.approx(4e-6)
    assert ours == pytest.approx(500**2 * theirs)
