"""Pairs per second and FLOPs per pair of the training step, each beside what it is compared with.

python -m tests.benchmarks.training_step [--pairs 16] [--repeats 5] [--device cpu]

Times are medians of one run on one machine and only mean something as ratios; FLOPs are counted and are the same
everywhere. The yardstick is a step of the same model that reaches the denoiser four times (policy and reference, chosen
and rejected each on its own), as several trainers do it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpo_core.data.batches import PairBatch
from dpo_core.families import SD15
from dpo_core.objectives import DPO, SFT, Objective
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising


def latent_batch(pairs: int, shape: tuple[int, int, int]) -> PairBatch:
    """Pairs as they come out of a latent cache: no image is decoded or encoded."""
    generator = torch.Generator().manual_seed(0)
    return PairBatch(
        pair_ids=[str(i) for i in range(pairs)],
        epochs=[0] * pairs,
        weights=torch.ones(pairs),
        chosen_captions=["a red circle above a blue square"] * pairs,
        rejected_captions=["a red circle above a blue square"] * pairs,
        posterior=torch.rand((pairs, 2, 2, *shape), generator=generator),
        geometry=torch.zeros((pairs, 2, 6), dtype=torch.int32),
    )


def make_step(objective: Objective, method: Any, batch: PairBatch, device: torch.device) -> Callable[[], None]:
    """Forward, loss and backward of one micro-batch."""
    family = SD15().load(device, "fp32")
    policy = Policy(PolicySection(method=method), family, device, "fp32", 0, objective.needs_reference)

    def step() -> None:
        denoising = prepare_denoising(policy, objective, batch, seed=0)
        objective(pair_errors(policy, objective, denoising)).loss.mean().backward()

    return step


def four_forwards(batch: PairBatch, device: torch.device) -> Callable[[], None]:
    """The yardstick: the same DPO step with chosen and rejected in passes of their own."""
    objective, family = DPO(), SD15().load(device, "fp32")
    policy = Policy(PolicySection(), family, device, "fp32", 0, True)
    assert batch.posterior is not None
    assert batch.geometry is not None
    text = family.condition(batch.chosen_captions, batch.geometry[:, 0])
    latents = family.scale_latents(batch.posterior[:, :, 0].to(device))
    timesteps = torch.full((len(batch),), 500, device=device)

    def step() -> None:
        sides = []
        for side in (0, 1):
            noise = torch.randn_like(latents[:, side])
            noisy = family.noising.add_noise(latents[:, side], noise, timesteps)
            sides.append((policy.predict(noisy, timesteps, text) - noise).square().mean((1, 2, 3)))
            sides.append((policy.predict_reference(noisy, timesteps, text) - noise).square().mean((1, 2, 3)))
        margin = -0.5 * objective.beta * ((sides[0] - sides[1]) - (sides[2] - sides[3]))
        (-torch.nn.functional.logsigmoid(margin)).mean().backward()

    return step


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of one call, counted."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median time of a call after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, batch = torch.device(arguments.device), latent_batch(arguments.pairs, (4, 16, 16))
    steps = {
        "dpo, four forwards": four_forwards(batch, device),
        "dpo, full": make_step(DPO(), "full", batch, device),
        "dpo, lora": make_step(DPO(), "lora", batch, device),
        "sft, full": make_step(SFT(), "full", batch, device),
    }
    print(f"{'step':<20}{'GFLOP/pair':>12}{'pairs/s':>10}{'ratio':>8}")
    yardstick = 0.0
    for name, step in steps.items():
        counted = flops(step) / arguments.pairs / 1e9
        rate = arguments.pairs / seconds(step, arguments.repeats, device)
        yardstick = yardstick or rate
        print(f"{name:<20}{counted:>12.2f}{rate:>10.1f}{rate / yardstick:>8.2f}")


if __name__ == "__main__":
    main()
