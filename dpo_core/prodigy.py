"""Prodigy: Adam that estimates its own step size."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class Prodigy(torch.optim.Optimizer):
    """Prodigy with Adam's moments (Mishchenko & Defazio, arXiv 2306.06101, algorithm 4).

    The step size is ``lr * d``, where d is a lower bound of the distance from the start to a solution, raised after
    each gradient to <g, x_0 - x> / |s|_1 summed over the run. As the authors advise for diffusion models, moments are
    bias-corrected and a learning rate that is still rising does not enter s (their ``safeguard_warmup``). An update
    whose learning rate is zero leaves everything as it is.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d0": d0}
        super().__init__(params, defaults)
        if len(self.param_groups) != 1:
            raise ValueError("Prodigy estimates one step size, so it takes one group of parameters")
        self.param_groups[0] |= {"d": d0, "numerator": 0.0, "updates": 0}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; a parameter without gradient is left alone."""
        assert closure is None
        (group,) = self.param_groups
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters or group["lr"] == 0:
            return
        (beta1, beta2), d, d0 = group["betas"], group["d"], group["d0"]
        beta3 = math.sqrt(beta2)
        count = group["updates"] + 1
        step = d * group["lr"] * math.sqrt(1 - beta2**count) / (1 - beta1**count)

        gradients: list[torch.Tensor] = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = torch.zeros_like
                self.state[parameter] |= {"start": parameter.clone(), "first": zeros(parameter),
                                          "second": zeros(parameter), "s": zeros(parameter)}  # fmt: skip
        start, first, second, s = (
            [self.state[parameter][name] for parameter in parameters] for name in ("start", "first", "second", "s")
        )

        moved = torch._foreach_sub(start, parameters)
        along = torch.stack([(g * m).sum() for g, m in zip(gradients, moved, strict=True)]).sum()
        torch._foreach_lerp_(first, torch._foreach_mul(gradients, d), 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, d * d * (1 - beta2))
        torch._foreach_mul_(s, beta3)
        torch._foreach_add_(s, gradients, alpha=d / d0 * d)
        total = torch.stack(torch._foreach_norm(s, 1)).sum()

        # One transfer from the device for both sums.
        along, total = torch.stack([along, total]).tolist()
        group["numerator"] = beta3 * group["numerator"] + d / d0 * step * along
        group["updates"] = count
        if total == 0:
            return
        group["d"] = d = max(d, group["numerator"] / total)
        torch._foreach_mul_(parameters, 1 - step * group["weight_decay"])
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, d * group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominators, -step)
