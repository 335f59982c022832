"""An exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class EMA:
    """average <- d average + (1 - d) weights after each update, in float32.

    After update n (from 0), d = min(decay, (1 + n) / (10 + n)), and 0 at n = 0: early averages are short, as in
    diffusers, so the start weights are soon forgotten.
    """

    def __init__(self, decay: float, parameters: dict[str, torch.nn.Parameter]) -> None:
        self.decay = decay
        self.parameters = parameters
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after an update."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(
            list(self.average.values()), [parameter.float() for parameter in self.parameters.values()], 1 - decay
        )
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards they are what they were, to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name] = weights

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; ValueError when it is an average of other weights."""
        saved: dict[str, Tensor] = state["average"]
        if saved.keys() != self.average.keys():
            odd = sorted(saved.keys() ^ self.average.keys())[:3]
            raise ValueError(f"the checkpoint averages other weights than this policy trains, for example {odd}")
        for name, average in self.average.items():
            average.copy_(saved[name])
        self.updates = state["updates"]
