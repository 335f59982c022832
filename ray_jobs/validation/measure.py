"""What held-out pairs say of a policy: numbers that mean the same for every objective."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from dpo_core.data.batches import PairBatch
from dpo_core.diagnostics import BUCKETS, accuracy
from dpo_core.objectives import DPO
from dpo_core.objectives.base import per_pair, reference_margin
from dpo_core.policy import Policy
from dpo_core.step import pair_errors, prepare_denoising
from dpo_core.timesteps import Uniform

BY_TIMESTEP = ("implicit_accuracy", "margin", "chosen_error_vs_reference", "rejected_error_vs_reference")
"""What is also told for each fifth of the noise schedule."""
ASKS = DPO()
"""Stands for "all four error maps"; its beta enters nothing."""


@torch.no_grad()
def measure(
    policy: Policy,
    batches: Iterable[PairBatch],
    *,
    seed: int,
    levels: int,
    progress: Callable[[int], None] = lambda pairs: None,
) -> dict[str, float]:
    """Means over all readable pairs, each at ``levels`` noise levels, which are equal parts of the schedule.

    The margin is (r_chosen - e_chosen) - (r_rejected - e_rejected) with e and r the mean squared errors of policy and
    reference, and the implicit accuracy its sign, ties one half (Wallace et al., arXiv 2311.12908). Noise, timestep and
    posterior draw are functions of (seed, level, pair id), so any two checkpoints and runs are measured alike. Raises
    ValueError when no pair can be read.
    """
    found: dict[str, list[torch.Tensor]] = {}
    seen = 0
    for batch in batches:
        for level in range(levels):
            values = _at_level(policy, batch, seed, level, levels)
            for name, value in values.items():
                found.setdefault(name, []).append(value[batch.weights > 0])
        seen += len(batch)
        progress(seen)
    columns = {name: torch.cat(parts) for name, parts in found.items()}
    buckets = columns.pop("bucket")
    if not len(buckets):
        raise ValueError("no held-out pair can be read, so there is nothing to measure")
    means = {name: values.mean().item() for name, values in columns.items()}
    for name in BY_TIMESTEP:
        for bucket in sorted(set(buckets.long().tolist())):
            means[f"{name}_by_timestep/{bucket}"] = columns[name][buckets == bucket].mean().item()
    return means | {"pairs": len(buckets) / levels}


def _at_level(policy: Policy, batch: PairBatch, seed: int, level: int, levels: int) -> dict[str, torch.Tensor]:
    family = policy.family
    part = Uniform(low=family.noise_up_to * level / levels, high=family.noise_up_to * (level + 1) / levels)
    drawn = replace(batch, epochs=[level] * len(batch))
    errors = pair_errors(policy, ASKS, prepare_denoising(policy, ASKS, drawn, seed, part))
    assert errors.policy_rejected is not None
    assert errors.reference_chosen is not None
    assert errors.reference_rejected is not None
    margin = reference_margin(errors)
    share = errors.timesteps / family.noising.num_timesteps
    values = {
        "implicit_accuracy": accuracy(margin),
        "margin": margin,
        "chosen_error": per_pair(errors.policy_chosen),
        "rejected_error": per_pair(errors.policy_rejected),
        "chosen_error_vs_reference": per_pair(errors.policy_chosen - errors.reference_chosen),
        "rejected_error_vs_reference": per_pair(errors.policy_rejected - errors.reference_rejected),
        "bucket": (share * BUCKETS).long().clamp(max=BUCKETS - 1),
    }
    return {name: value.double().cpu() for name, value in values.items()}
