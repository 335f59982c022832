"""Optimiser, learning-rate schedule and clipping."""

from typing import Literal

import torch
from pydantic import Field

from dpo_core.section import Section

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


class OptimSection(Section):
    """AdamW (arXiv 1711.05101) and its schedule."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of one update; it is not multiplied by batch size or worker count."""
    schedule: Schedule = "constant_with_warmup"
    """Learning-rate schedule, as diffusers names them."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from zero."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Clip the global gradient norm to this; null never clips."""


def make_optimizer(config: OptimSection, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over ``parameters``."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=parameters[0].is_cuda,
    )


def make_schedule(config: OptimSection, optimizer: torch.optim.Optimizer, max_steps: int):
    """The schedule of ``diffusers.optimization``; one tick is one update, however many workers there are."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(config.schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=max_steps)


def clip(parameters: list[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale gradients down to ``max_norm``; returns the norm before clipping, float32 scalar on the device."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm is not None else float("inf"))
