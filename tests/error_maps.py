"""Error maps that a reader can follow."""

from typing import Any

import torch
from torch import Tensor

from dpo_core.objectives import PairErrors


def error_maps(
    chosen: list[float],
    rejected: list[float] | None = None,
    reference_chosen: list[float] | None = None,
    reference_rejected: list[float] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Any:
    """``PairErrors`` with one value per pair all over its map of 2 x 3; every map can be differentiated."""

    def full(values: list[float] | None) -> Tensor | None:
        if values is None:
            return None
        return torch.tensor(values, dtype=dtype)[:, None, None].expand(-1, 2, 3).clone().requires_grad_()

    maps = [full(values) for values in (chosen, rejected, reference_chosen, reference_rejected)]
    given = {name: full(value) if isinstance(value, list) else value for name, value in more.items()}
    return PairErrors(torch.zeros(len(chosen), dtype=torch.long), *maps, **given)  # pyright: ignore[reportArgumentType]
