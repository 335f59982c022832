"""What a run says about itself: the loss alone tells nothing (it hovers near ln 2 while both errors rise)."""

import torch
from torch import Tensor

from dpo_core.noising import Noising
from dpo_core.objectives.base import LossOutput, PairErrors, per_pair

BUCKETS = 5
"""Equal parts of the noise schedule over which margins are told apart."""

Values = Tensor | tuple[Tensor, Tensor]
"""Per-pair values, or values with a mask of the pairs that they speak of."""


def diagnose(errors: PairErrors, output: LossOutput, loss: Tensor, noising: Noising) -> dict[str, Values]:
    """Per-pair diagnostics without gradient; errors as the denoiser made them, before any weighting."""
    values: dict[str, Values] = {"loss": loss.detach(), "chosen_error": per_pair(errors.policy_chosen).detach()}
    if errors.policy_rejected is not None:
        values["rejected_error"] = per_pair(errors.policy_rejected).detach()
    if errors.reference_chosen is not None:
        values["chosen_error_vs_reference"] = per_pair(errors.policy_chosen - errors.reference_chosen).detach()
        values["chosen_reference_error"] = per_pair(errors.reference_chosen)
    if errors.reference_rejected is not None and errors.policy_rejected is not None:
        values["rejected_error_vs_reference"] = per_pair(errors.policy_rejected - errors.reference_rejected).detach()
    if output.margin is not None:
        margin = output.margin.detach()
        values["margin"] = margin
        values["implicit_accuracy"] = accuracy(margin)
        values["gradient_factor"] = gradient_factor(loss, output.margin)
        bucket = (errors.timesteps / noising.num_timesteps * BUCKETS).long().clamp(max=BUCKETS - 1)
        values |= {f"margin_by_timestep/{index}": (margin, bucket == index) for index in range(BUCKETS)}
    return values | {name: value.detach() for name, value in output.metrics.items()}


def accuracy(margin: Tensor) -> Tensor:
    """Implicit accuracy: 1 where the margin is positive, one half where it is zero."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()


def gradient_factor(loss: Tensor, margin: Tensor) -> Tensor:
    """|d loss / d margin| of each pair: how much it still teaches (for DPO sigmoid(-margin), one half at first).

    Zero where ``shaping.margin_cap`` has silenced the pair, and everywhere when nothing has a gradient.
    """
    if not margin.requires_grad:
        return torch.zeros_like(margin)
    (factor,) = torch.autograd.grad(loss.sum(), margin, retain_graph=True)
    return factor.abs()


class ChosenErrorAlarm:
    """Notices when the policy denoises the *chosen* images worse than its reference does, window after window.

    A growing margin made of two rising errors is the usual way in which preference training goes wrong.
    """

    def __init__(self, threshold: float, patience: int = 3) -> None:
        self.threshold = threshold
        self.patience = patience
        self.windows = 0
        self.share = 0.0

    def check(self, metrics: dict[str, float]) -> bool:
        """Take the metrics of one logged window; True while the alarm is on."""
        shift, reference = metrics.get("chosen_error_vs_reference"), metrics.get("chosen_reference_error")
        if shift is None or reference is None:
            return False
        self.share = shift / max(reference, 1e-12)
        self.windows = self.windows + 1 if self.share > self.threshold else 0
        return self.windows >= self.patience

    @property
    def just_raised(self) -> bool:
        """Whether the last window switched the alarm on."""
        return self.windows == self.patience

    @property
    def message(self) -> str:
        return (
            f"the error of the chosen images has been more than {100 * self.threshold:g} % above the reference's for "
            f"{self.patience} logged windows (now {100 * self.share:+.1f} %): the margin grows by unlearning. Lower "
            "optim.lr, raise objective.beta, or set shaping.sft_weight or shaping.winner_guard."
        )
