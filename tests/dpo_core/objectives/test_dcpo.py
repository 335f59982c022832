import math

import pytest

from dpo_core.objectives import DCPO
from tests.error_maps import error_maps


def test_loss_by_hand():
    output = DCPO(beta=1000.0)(error_maps([0.099], [0.202], [0.1], [0.2]))
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_it_asks_for_a_caption_of_each_image():
    assert DCPO.captions == "per_image"
    assert DCPO().beta == 500
