"""Optimisers and clipping."""

import logging
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from dpo_core.schedule import Schedule, ScheduleName, parse_step_rules
from dpo_core.section import Section

# PEFT imports bitsandbytes where it is installed, which then warns of a 4-bit kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class OptimSection(Section):
    """The optimiser, its learning rate, and an average of the weights."""

    name: Literal["adamw", "adamw_8bit", "adafactor", "prodigy"] = "adamw"
    """AdamW (arXiv 1711.05101), also with moments in 8 bit (arXiv 2110.02861; needs the extra ``optim``), Adafactor
    without its own step sizes (arXiv 1804.04235), or Prodigy, which finds its step size itself (arXiv 2306.06101)."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of one update; for prodigy a factor on its own estimate, usually 1."""
    scale_lr: bool = False
    """Multiply ``lr`` by ``loop.global_batch_size``: as the original scripts do (accumulation x batch x processes)."""
    schedule: ScheduleName = "constant_with_warmup"
    """Learning-rate schedule, as diffusers names them; one tick is one update, however many workers there are."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from zero; the first of them has none."""
    cycles: int = Field(default=1, ge=1)
    """How often ``cosine_with_restarts`` falls from the peak to zero."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of ``polynomial``."""
    step_rules: str | None = None
    """Of ``piecewise_constant``: ``1:500,0.1:1500,0.01`` is lr for updates before 500, then a tenth of it before 1500,
    then a hundredth."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment; adafactor has none."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment; adafactor's follows from the update number."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator; adafactor has its own (1e-30 and 1e-3)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Clip the global gradient norm to this; null never clips."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Export a moving average of the trained weights with this decay, such as 0.9999; null exports the weights."""

    @model_validator(mode="after")
    def _fields_belong_together(self) -> "OptimSection":
        problems: list[str] = []
        if (self.schedule == "piecewise_constant") != (self.step_rules is not None):
            problems.append(f"schedule {self.schedule} " + ("needs" if self.step_rules is None else "has no")
                            + " step_rules (such as 1:500,0.1:1500,0.01, for piecewise_constant)")  # fmt: skip
        elif self.step_rules is not None:
            parse_step_rules(self.step_rules)
        if self.warmup_steps and self.schedule in ("constant", "piecewise_constant"):
            problems.append(f"schedule {self.schedule} has no warmup_steps ({self.warmup_steps}): take "
                            "constant_with_warmup, or step_rules that begin low")  # fmt: skip
        if self.cycles != 1 and self.schedule != "cosine_with_restarts":
            problems.append(f"cycles ({self.cycles}) belongs to schedule cosine_with_restarts, not {self.schedule}")
        if self.power != 1 and self.schedule != "polynomial":
            problems.append(f"power ({self.power:g}) belongs to schedule polynomial, not {self.schedule}")
        if self.name == "prodigy" and (self.lr < 0.1 or self.scale_lr):
            problems.append(f"prodigy multiplies its own step size by lr ({self.lr:g}, scale_lr {self.scale_lr}): "
                            "give lr 1, without scale_lr")  # fmt: skip
        if self.name == "adafactor" and (self.beta1, self.beta2, self.eps) != (0.9, 0.999, 1e-8):
            problems.append("adafactor has no beta1, beta2 and eps to set: leave them out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def peak_lr(self, global_batch_size: int) -> float:
        """The learning rate that the schedule is a factor of."""
        return self.lr * global_batch_size if self.scale_lr else self.lr


def make_optimizer(
    config: OptimSection, parameters: list[torch.nn.Parameter], global_batch_size: int = 1
) -> torch.optim.Optimizer:
    """The optimiser over ``parameters``; ValueError when its library is not installed."""
    lr, betas = config.peak_lr(global_batch_size), (config.beta1, config.beta2)
    shared: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay}
    match config.name:
        case "adamw":
            return torch.optim.AdamW(parameters, betas=betas, eps=config.eps, fused=parameters[0].is_cuda, **shared)
        case "adamw_8bit":
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError as error:
                raise ValueError(
                    "optim.name=adamw_8bit needs bitsandbytes: pip install 'palate[optim]', or take adamw"
                ) from error
            return AdamW8bit(parameters, betas=betas, eps=config.eps, **shared)
        case "adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(parameters, clip_threshold=1.0, scale_parameter=False, relative_step=False, **shared)
        case "prodigy":
            from dpo_core.prodigy import Prodigy

            return Prodigy(parameters, betas=betas, eps=config.eps, **shared)


def make_schedule(config: OptimSection, optimizer: torch.optim.Optimizer, max_steps: int) -> Schedule:
    """The schedule of a new ``optimizer``, whose learning rate is the peak. ValueError when it cannot end below it."""
    return Schedule(
        optimizer,
        config.schedule,
        max_steps=max_steps,
        warmup_steps=config.warmup_steps,
        cycles=config.cycles,
        power=config.power,
        step_rules=config.step_rules,
    )


def clip(
    parameters: list[torch.nn.Parameter], max_norm: float | None, norm: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale gradients down to ``max_norm``; returns the norm before clipping, float32 scalar on the device.

    ``norm`` is that of the whole gradient where ``parameters`` hold a part of it.
    """
    limit = max_norm if max_norm is not None else float("inf")
    if norm is None:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
