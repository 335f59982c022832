"""The learning rate as a function of the updates done."""

from collections.abc import Callable
from typing import Literal

import torch

ScheduleName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
]

POLYNOMIAL_END = 1e-7
"""Where diffusers' polynomial schedule ends."""


class Schedule:
    """Sets the learning rate of every group of an optimiser: peak times a factor that ``diffusers.optimization`` names.

    One tick is one update, also one that was skipped because its gradient was not finite: the learning rate is a
    function of the update number alone, and nothing depends on whether the optimiser has stepped yet.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: ScheduleName,
        *,
        max_steps: int,
        warmup_steps: int = 0,
        cycles: int = 1,
        power: float = 1.0,
        step_rules: str | None = None,
    ) -> None:
        from diffusers.optimization import get_scheduler

        self.optimizer = optimizer
        self.peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.done = 0
        # diffusers hands out its factors only on an optimiser of torch's.
        holder = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=self.peaks[0])
        self.factor: Callable[[int], float] = get_scheduler(
            name,
            holder,
            step_rules=step_rules,
            num_warmup_steps=warmup_steps,
            num_training_steps=max_steps,
            num_cycles=cycles,
            power=power,
        ).lr_lambdas[0]
        self._set()

    def _set(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            group["lr"] = lr

    def step(self) -> None:
        """One update is done."""
        self.done += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The learning rate of the next update, for each group."""
        return [peak * self.factor(self.done) for peak in self.peaks]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]
        self._set()


def parse_step_rules(rules: str) -> tuple[list[tuple[int, float]], float]:
    """``1:500,0.1:1500,0.01`` as ([(500, 1.0), (1500, 0.1)], 0.01); ValueError when it does not read like that."""
    *parts, last = rules.split(",")
    try:
        steps = [(int(until), float(factor)) for factor, until in (part.split(":") for part in parts)]
        rest = float(last)
    except ValueError:
        steps, rest = [], -1.0
    untils = [until for until, _ in steps]
    if not steps or untils != sorted(set(untils)) or untils[0] < 1 or min(rest, *(factor for _, factor in steps)) < 0:
        raise ValueError(
            f"step_rules {rules!r} is not FACTOR:UPDATE,...,FACTOR with rising updates, such as 1:500,0.1:1500,0.01"
        )
    return steps, rest
