"""The objectives on what the original scripts recorded: loss and gradient for the policy's predictions.

Each case in tests/assets/parity has a NOTICE that names its source. Where we deviate on purpose, the test shows the
original's value, ours, and why.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from dpo_core.objectives import DMPO, DPO, DSPO, KTO, ORPO, LossOutput, MaPO
from dpo_core.shaping import guard_winner
from tests.recorded import LossCase, recorded_errors

CHOSEN, REJECTED = slice(0, 4), slice(4, 8)


def margin_of(output: LossOutput) -> torch.Tensor:
    assert output.margin is not None
    return output.margin


@pytest.mark.parametrize("variant", [0, 1])
def test_mapo_agrees_with_its_script(variant: int) -> None:
    case = LossCase("loss_mapo", variant)
    objective = MaPO(beta=case.hyper["beta_mapo"], snr=case.hyper["snr_value"])
    loss = objective(case.errors(objective)).loss
    case.is_loss(loss)
    case.is_gradient(case.gradient(loss))


@pytest.mark.parametrize("variant", [0, 1])
def test_orpo_has_the_sign_of_the_paper_and_not_of_the_diffusers_script(variant: int) -> None:
    case = LossCase("loss_orpo", variant)
    objective = ORPO(beta=case.hyper["beta_orpo"])
    errors = case.errors(objective)
    output = objective(errors)
    chosen = errors.policy_chosen.mean(dim=(1, 2))
    theirs = chosen - objective.beta * logsigmoid(-margin_of(output))
    case.is_loss(theirs)
    case.is_gradient(case.gradient(theirs))
    torch.testing.assert_close(-margin_of(output), case["log_odds"])
    # Why: the preference term of the script falls when the rejected image is denoised better than the chosen one.
    (slope,) = torch.autograd.grad((theirs - chosen).sum(), errors.policy_chosen, retain_graph=True)
    (ours,) = torch.autograd.grad((output.loss - chosen).sum(), errors.policy_chosen, retain_graph=True)
    assert (slope < 0).all()
    assert (ours > 0).all()


def test_dspo_agrees_with_its_script_and_reaches_the_rejected_image() -> None:
    case = LossCase("loss_dspo", 0)
    objective = DSPO(beta=case.hyper["beta_dpo"])
    loss = objective(case.errors(objective)).loss
    case.is_loss(loss)
    case.is_gradient(case.gradient(loss), CHOSEN)
    case.is_gradient(case.gradient(loss), REJECTED)
    assert (case.gradient(loss)[REJECTED] != 0).all()


def test_dspo_of_the_script_for_sdxl_never_looks_at_the_target() -> None:
    # Two forms, chosen by whether the mean shift of the batch reaches 0.1; in neither does the noise to be predicted
    # appear but through the weight: the first pulls the policy back to its reference, the second is a function of the
    # margin alone. Ours is the paper's for every family.
    for variant, form in ((1, "shift"), (2, "margin")):
        case = LossCase("loss_dspo", variant)
        objective = DSPO(beta=case.hyper["beta_dpo"])
        errors = case.errors(objective)
        output = objective(errors)
        assert errors.chosen_shift is not None
        shift = errors.chosen_shift.mean(dim=(1, 2))
        assert (shift.mean() >= 0.1) == (form == "shift")
        weight = torch.sigmoid(-margin_of(output)).square()
        theirs = weight * shift if form == "shift" else weight
        case.is_loss(theirs)
        case.is_gradient(case.gradient(theirs))
        assert (output.loss.mean() - case["loss"]).abs() > 0.1


def images(case: LossCase, objective: KTO, which: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """The loss of single images: each is both images of a pair, and one of the two has no weight."""
    predictions, target, reference = (
        tensor[which].repeat(2, 1, 1, 1) for tensor in (case.prediction, case["target"], case["ref_pred"])
    )
    errors = recorded_errors(objective, predictions, target, reference)
    return 2 * objective(replace(errors, baseline=baseline)).loss


def kto_loss(case: LossCase, liked: Any, disliked: Any, baseline: torch.Tensor) -> torch.Tensor:
    """The loss of every image, with the utilities of liked and disliked ones."""
    labels = case["labels"].bool()
    beta = 2.0 * case.hyper["beta_dpo"]  # the script has no factor one half
    up = KTO(beta=beta, utility=liked, chosen_weight=case.hyper["lambda_d_kto"], rejected_weight=0)
    down = KTO(beta=beta, utility=disliked, chosen_weight=0, rejected_weight=case.hyper["lambda_u_kto"])
    return torch.cat([images(case, up, labels, baseline), images(case, down, ~labels, baseline)])


@pytest.mark.parametrize(
    ("variant", "liked", "disliked"),
    [
        (0, "sigmoid", "sigmoid"),
        (2, "sigmoid", "sigmoid"),
        (3, "loss_averse", "loss_averse"),
        (4, "risk_seeking", "loss_averse"),  # the script's risk_seeking_1
        (6, "risk_seeking", "risk_seeking"),  # the script's risk_seeking_3
    ],
)
def test_kto_agrees_with_its_script_given_its_baseline(variant: int, liked: str, disliked: str) -> None:
    case = LossCase("loss_kto", variant)
    loss = kto_loss(case, liked, disliked, case["kl"])
    case.is_loss(loss)
    case.is_gradient(case.gradient(loss))


@pytest.mark.parametrize("variant", [0, 3, 6])
def test_baseline_of_kto_is_the_mean_over_all_images_of_the_batch(variant: int) -> None:
    case = LossCase("loss_kto", variant)
    everyone = case.prediction.repeat(2, 1, 1, 1)
    errors = recorded_errors(KTO(), everyone, case["target"].repeat(2, 1, 1, 1), case["ref_pred"].repeat(2, 1, 1, 1))
    mean = KTO().baseline_terms(errors).mean().clamp(min=0)
    torch.testing.assert_close(mean, case["kl"], rtol=0, atol=1e-7)


def test_kto_never_counts_a_baseline_below_zero_as_one_option_of_the_script_does(monkeypatch) -> None:
    # --bce_offset sigmoid takes the mean of the two classes' means as it is. It stands for a divergence, which is never
    # negative (arXiv 2402.01306 keeps it above zero); below zero it would raise the value of every image.
    case = LossCase("loss_kto", 1)
    assert case["kl"] < 0
    zero = torch.zeros(())
    ours = kto_loss(case, "sigmoid", "sigmoid", case["kl"])
    assert torch.equal(ours, kto_loss(case, "sigmoid", "sigmoid", zero))
    assert (ours.mean() - case["loss"]).abs() > 0.01
    gains = KTO.baseline_terms
    monkeypatch.setattr(KTO, "baseline_terms", lambda self, errors: gains(self, errors) - case["kl"])
    case.is_loss(kto_loss(case, "sigmoid", "sigmoid", zero))


@pytest.mark.parametrize("variant", [2, 5])
def test_dpo_and_dmpo_agree_with_the_sdpo_script_without_its_guard(variant: int) -> None:
    case = LossCase("loss_sdpo", variant)
    objective = sdpo_objective(case)
    loss = objective(case.errors(objective)).loss
    case.is_loss(loss)
    case.is_gradient(case.gradient(loss))


def sdpo_objective(case: LossCase) -> Any:
    beta = case.hyper["beta_dpo"]
    if case.hyper["train_method"] == "dspo":
        return DSPO(beta=beta)
    # The script keeps 1 - alpha in float32, so its alpha of zero is this one.
    alpha = case.hyper["dmpo_alpha"] or 1 - torch.tensor(1 - 1e-6).double().item()
    return DMPO(beta=beta, alpha=alpha) if case.hyper["train_method"] == "dmpo" else DPO(beta=beta)


@pytest.mark.parametrize("variant", [0, 1, 3, 4, 6])
def test_guard_holds_back_the_rejected_image_of_each_pair_instead_of_a_batch(variant: int) -> None:
    # Loss and gradient for the chosen images are the script's. It scales the gradient for all rejected images of a
    # micro-batch by one number, so a pair pays for another and the batch size changes the update; ours has one each.
    case = LossCase("loss_sdpo", variant)
    objective, mu = sdpo_objective(case), case.hyper["winner_preserving_mu"]
    free = case.errors(objective, needs_product=True)
    guarded = guard_winner(free, mu)
    loss = objective(guarded).loss
    case.is_loss(loss)
    case.is_gradient(case.gradient(loss), CHOSEN)
    unscaled = case.gradient(objective(free).loss)
    case.is_gradient(case["lose_scale"] * unscaled, REJECTED)
    residual = (case.prediction - case["target"]).detach()
    inner = (residual[CHOSEN] * residual[REJECTED]).sum(dim=(1, 2, 3))
    own = torch.where(
        inner > 0, ((1 - mu) * residual[CHOSEN].square().sum(dim=(1, 2, 3)) / inner).clamp(max=1), torch.tensor(1.0)
    )
    torch.testing.assert_close(case.gradient(loss)[REJECTED], own[:, None, None, None] * unscaled[REJECTED])


def test_guard_on_a_batch_of_one_pair_is_the_script_s() -> None:
    for variant in (0, 1, 4):
        case = LossCase("loss_sdpo", variant)
        mu = case.hyper["winner_preserving_mu"]
        # The four pairs of the micro-batch side by side, as one pair of larger images.
        wide = {
            name: torch.cat([torch.cat(list(half), dim=2)[None] for half in (tensor[CHOSEN], tensor[REJECTED])])
            for name, tensor in (("prediction", case.prediction), ("target", case["target"]), ("ref", case["ref_pred"]))
        }
        free = recorded_errors(DPO(), wide["prediction"], wide["target"], wide["ref"], needs_product=True)
        rejected = guard_winner(free, mu).policy_rejected
        assert rejected is not None
        assert free.policy_rejected is not None
        plain, held = case.gradient(free.policy_rejected), case.gradient(rejected)
        torch.testing.assert_close(held[REJECTED], case["lose_scale"] * plain[REJECTED])
