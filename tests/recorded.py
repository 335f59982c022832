"""Recorded predictions, turned into error maps by the step itself, and the cases that they come from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dpo_core.objectives import Objective, PairErrors
from dpo_core.policy import Policy
from dpo_core.step import Denoising, pair_errors

CASES = Path(__file__).parent / "assets" / "parity"


class RecordedPolicy(Policy):
    """Predicts what was recorded, so that ``pair_errors`` itself makes the error maps."""

    def __init__(self, prediction: Tensor, reference: Tensor | None) -> None:
        self.prediction, self.reference = prediction, reference

    def predict(self, noisy: Any, timesteps: Any, conditioning: Any) -> Tensor:
        return self.prediction

    def predict_reference(self, noisy: Any, timesteps: Any, conditioning: Any) -> Tensor:
        assert self.reference is not None
        return self.reference


def recorded_errors(
    objective: Objective,
    prediction: Tensor,
    target: Tensor,
    reference: Tensor | None = None,
    timesteps: Tensor | None = None,
    **options: Any,
) -> PairErrors:
    """Error maps of ``[2 pairs, c, h, w]`` predictions, chosen first; ``options`` are those of ``pair_errors``."""
    count = len(prediction)
    denoising = Denoising(
        noisy=torch.zeros_like(target),
        target=target,
        timesteps=timesteps if timesteps is not None else torch.zeros(count, dtype=torch.long),
        conditioning={},
        reference_conditioning={},
        pairs=count // 2,
    )
    return pair_errors(RecordedPolicy(prediction, reference), objective, denoising, **options)


class LossCase:
    """One variant of a recorded loss: its tensors by name, and ``prediction`` ready to be differentiated."""

    def __init__(self, name: str, variant: int) -> None:
        meta = json.loads((CASES / name / "meta.json").read_text())
        self.hyper: dict[str, Any] = meta["variants"][variant]["hyper_parameters"]
        self.tolerance: dict[str, float] = meta["tolerance"]
        tensors = load_file(CASES / name / "cases.safetensors")
        prefix = f"v{variant:02}."
        self.tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        self.prediction = self.tensors["policy_pred"].clone().requires_grad_()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def errors(self, objective: Objective, **options: Any) -> PairErrors:
        return recorded_errors(objective, self.prediction, self["target"], self.tensors.get("ref_pred"), **options)

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of the mean loss for the policy's predictions."""
        (gradient,) = torch.autograd.grad(loss.mean(), self.prediction, retain_graph=True)
        return gradient

    def is_loss(self, loss: Tensor) -> None:
        """The mean of ``loss`` is the recorded one, within the tolerance that was recorded with it."""
        torch.testing.assert_close(loss.mean(), self["loss"], rtol=0, atol=self.tolerance["loss_atol"])

    def is_gradient(self, gradient: Tensor, part: slice = slice(None)) -> None:
        """``gradient`` is the recorded one where ``part`` says, by the measure of the largest value there."""
        recorded = self["grad_policy"][part]
        atol = self.tolerance["grad_policy_atol_rel_to_max"] * recorded.abs().max().item()
        torch.testing.assert_close(gradient[part], recorded, rtol=0, atol=atol)
