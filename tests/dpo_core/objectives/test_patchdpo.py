import pytest
import torch

from dpo_core.objectives import PairErrors, PatchDPO


def one_pair() -> PairErrors:
    """One pair with maps of 1 x 2."""
    chosen, rejected = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 4.0]]])
    quality = {"chosen_quality": torch.tensor([[[0.0, 1.0]]]), "rejected_quality": torch.tensor([[[0.5, 0.25]]])}
    return PairErrors(torch.zeros(1), chosen.requires_grad_(), rejected.requires_grad_(), **quality)


def test_loss_by_hand():
    # chosen: (1 * 1 + 0 * 3) / 2 = 0.5, rejected: (0.5 * 2 + 0.25 * 4) / 2 = 1, and the mean of the two
    assert PatchDPO()(one_pair()).loss.tolist() == pytest.approx([0.75])


def test_where_the_generated_image_shows_the_photo_well_nothing_is_learned_from_the_photo():
    errors = one_pair()
    PatchDPO()(errors).loss.sum().backward()
    assert errors.policy_chosen.grad is not None
    assert errors.policy_chosen.grad.flatten().tolist() == pytest.approx([0.25, 0])


def test_both_halves_are_learned_not_unlearned():
    errors = one_pair()
    PatchDPO()(errors).loss.sum().backward()
    assert errors.policy_rejected is not None
    assert errors.policy_rejected.grad is not None
    assert (errors.policy_rejected.grad > 0).all()
