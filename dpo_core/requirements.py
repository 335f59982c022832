"""Which parts of a training config fit together; asked before a model is loaded or a GPU is requested."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from dpo_core.families.base import LoadedFamily
from dpo_core.schedule import POLYNOMIAL_END
from dpo_core.timesteps import AnyTimesteps

if TYPE_CHECKING:
    from dpo_core.recipe import TrainSection


def check_parts(config: "TrainSection") -> None:
    """Raise ValueError with every combination in ``config`` that cannot be trained."""
    problems = [*objective_needs(config), *shaping_needs(config), *policy_needs(config), *optim_needs(config)]
    if problems:
        raise ValueError("; ".join(problems))


def check_timesteps(timesteps: AnyTimesteps, family: LoadedFamily) -> None:
    """Raise ValueError when noise levels would be drawn that the denoiser has never seen; only its folder tells."""
    shares = timesteps.share(torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64))
    if shares.max() >= family.noise_up_to:
        raise ValueError(
            f"timesteps: {timesteps.kind} draws up to {shares.max().item():.3g} of the schedule, but this model was "
            f"trained below {family.noise_up_to:g} (it is a refiner); set timesteps.kind=uniform "
            f"timesteps.high={family.noise_up_to:g}"
        )


def objective_needs(config: "TrainSection") -> Iterator[str]:
    objective, data = config.objective, config.data
    if objective.captions == "per_image" and data.captions != "per_image":
        yield (
            f"objective {objective.kind} needs a caption for each image: set data.captions=per_image "
            "(columns caption_0 and caption_1)"
        )
    if objective.rejected == "made" and data.rejected == "given":
        yield (
            f"objective {objective.kind} needs rejected images made from chosen ones: set data.rejected to other, "
            "blur, grid or noise"
        )
    if objective.needs_quality and not data.quality:
        yield (
            f"objective {objective.kind} needs a patch quality map for each image: set data.quality=true "
            "(columns patch_quality_0 and patch_quality_1)"
        )


def policy_needs(config: "TrainSection") -> Iterator[str]:
    policy, family = config.policy, config.family
    if policy.sharding == "full" and config.optim.name != "adamw":
        yield (
            f"policy.sharding=full needs an optimiser that works weight by weight: set optim.name=adamw instead of "
            f"{config.optim.name}"
        )
    if policy.method == "ip_adapter":
        if not config.data.prompt_image:
            yield "policy.method=ip_adapter needs image prompts: set data.prompt_image=true"
        if not family.takes_image_prompts:
            yield f"policy.method=ip_adapter is for the U-Net families (sd15, sdxl), not for {family.kind}"
    elif config.data.prompt_image:
        yield f"data.prompt_image=true shows images to an IP-Adapter, which policy.method={policy.method} does not have"


def shaping_needs(config: "TrainSection") -> Iterator[str]:
    objective, shaping = config.objective, config.shaping
    if shaping.winner_guard is not None and not objective.has_margin:
        yield f"shaping.winner_guard needs a margin, which objective {objective.kind} does not have"
    if shaping.huber_delta is not None and (objective.needs_shift or shaping.winner_guard is not None):
        user = f"objective {objective.kind}" if objective.needs_shift else "shaping.winner_guard"
        yield f"shaping.huber_delta is not possible with {user}, which needs squared errors"
    if shaping.margin_cap is not None and not objective.has_margin:
        yield f"shaping.margin_cap needs a margin, which objective {objective.kind} does not have"


def optim_needs(config: "TrainSection") -> Iterator[str]:
    optim, batch = config.optim, config.loop.global_batch_size
    if optim.schedule == "polynomial" and optim.peak_lr(batch) <= POLYNOMIAL_END:
        yield f"optim.schedule=polynomial ends at {POLYNOMIAL_END:g}: optim.lr={optim.peak_lr(batch):g} must be above"
