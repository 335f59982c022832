import pytest
import torch

from dpo_core.objectives import Hinge
from tests.error_maps import error_maps


def test_loss_by_hand():
    # beta 1000: u = 1.5 is beyond the hinge, u = 0.5 half way
    output = Hinge(beta=1000.0)(error_maps([0.099, 0.1], [0.202, 0.201], [0.1, 0.1], [0.2, 0.2]))
    assert output.loss.tolist() == pytest.approx([0.0, 0.5])


def test_a_pair_beyond_the_hinge_teaches_nothing():
    maps = error_maps([0.099, 0.1], [0.202, 0.201], [0.1, 0.1], [0.2, 0.2])
    Hinge(beta=1000.0)(maps).loss.sum().backward()
    assert maps.policy_chosen.grad.sum(dim=(1, 2)).tolist() == pytest.approx([0, 500])


def test_beta_of_the_diffusers_script_counts_twice():
    # The last step of the SD script (huggingface/diffusers at 58eb52c0, Apache-2.0) run with --loss_type hinge and
    # --beta_dpo 800; its margin has no factor one half.
    recorded = error_maps(
        [1.166203498840332, 1.2669990062713623, 1.406723976135254, 1.229868769645691],
        [1.1485927104949951, 1.2655235528945923, 1.4077142477035522, 1.2419852018356323],
        [1.170143961906433, 1.2682576179504395, 1.4095052480697632, 1.2316241264343262],
        [1.1506366729736328, 1.2668222188949585, 1.4105149507522583, 1.2431159019470215],
        dtype=torch.float32,
    )
    output = Hinge(beta=1600.0)(recorded)
    assert output.margin is not None
    assert output.margin.tolist() == pytest.approx([1.51720047, -0.03204346, -0.01554489, 0.49972534], abs=2e-3)
    assert output.loss.mean().item() == pytest.approx(0.63696575, abs=6e-4)
