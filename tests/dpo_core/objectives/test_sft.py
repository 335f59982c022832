import pytest
import torch

from dpo_core.objectives import SFT, PairErrors


def test_loss_is_the_mean_error_of_the_chosen_image():
    error = torch.arange(12.0).reshape(2, 2, 3)
    output = SFT()(PairErrors(torch.zeros(2, dtype=torch.long), error))
    assert output.loss.tolist() == pytest.approx([2.5, 8.5])


def test_sft_asks_for_neither_reference_nor_rejected_image():
    assert not SFT.needs_reference
    assert not SFT.needs_rejected
