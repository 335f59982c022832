"""Which parts of a training config fit together; asked before a model is loaded or a GPU is requested."""

from collections.abc import Iterator

import torch

from dpo_core.data.section import DataSection
from dpo_core.families import AnyFamily, LoadedFamily
from dpo_core.objectives import AnyObjective
from dpo_core.optim import OptimSection
from dpo_core.policy import PolicySection
from dpo_core.schedule import POLYNOMIAL_END
from dpo_core.shaping import ShapingSection
from dpo_core.timesteps import AnyTimesteps


def check_timesteps(timesteps: AnyTimesteps, family: LoadedFamily) -> None:
    """Raise ValueError when noise levels would be drawn that the denoiser has never seen; only its folder tells."""
    shares = timesteps.share(torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64))
    if shares.max() >= family.noise_up_to:
        raise ValueError(
            f"timesteps: {timesteps.kind} draws up to {shares.max().item():.3g} of the schedule, but this model was "
            f"trained below {family.noise_up_to:g} (it is a refiner); set timesteps.kind=uniform "
            f"timesteps.high={family.noise_up_to:g}"
        )


def objective_needs(objective: AnyObjective, data: DataSection) -> Iterator[str]:
    """Every reason why ``objective`` cannot train on ``data``."""
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


def family_needs(family: AnyFamily) -> Iterator[str]:
    """Every reason why ``family`` cannot be loaded that can be told without looking for the model."""
    if family.model == "embedded" and family.kind != "sd15":
        yield (
            f"family.model=embedded is a model of family sd15: give family.kind={family.kind} a diffusers folder or a "
            "hub id"
        )


def policy_needs(policy: PolicySection, family: AnyFamily, data: DataSection, optim: OptimSection) -> Iterator[str]:
    """Every reason why ``policy`` cannot be made of ``family``, shown ``data`` or trained by ``optim``."""
    if policy.sharding == "full" and optim.name != "adamw":
        yield (
            f"policy.sharding=full needs an optimiser that works weight by weight: set optim.name=adamw instead of "
            f"{optim.name}"
        )
    if policy.text_encoder and not family.has_clip:
        yield f"policy.text_encoder=true is for CLIP text encoders, which family {family.kind} does not have"
    if policy.method == "ip_adapter":
        if not data.prompt_image:
            yield "policy.method=ip_adapter needs image prompts: set data.prompt_image=true"
        if not family.takes_image_prompts:
            yield f"policy.method=ip_adapter is for the U-Net families (sd15, sdxl), not for {family.kind}"
    elif data.prompt_image:
        yield f"data.prompt_image=true shows images to an IP-Adapter, which policy.method={policy.method} does not have"


def shaping_needs(shaping: ShapingSection, objective: AnyObjective) -> Iterator[str]:
    """Every reason why ``shaping`` does not go with ``objective``."""
    if shaping.winner_guard is not None and not objective.has_margin:
        yield f"shaping.winner_guard needs a margin, which objective {objective.kind} does not have"
    if shaping.huber_delta is not None and (objective.needs_shift or shaping.winner_guard is not None):
        user = f"objective {objective.kind}" if objective.needs_shift else "shaping.winner_guard"
        yield f"shaping.huber_delta is not possible with {user}, which needs squared errors"
    if shaping.margin_cap is not None and not objective.has_margin:
        yield f"shaping.margin_cap needs a margin, which objective {objective.kind} does not have"


def optim_needs(optim: OptimSection, global_batch_size: int) -> Iterator[str]:
    """Every reason why ``optim`` cannot run its schedule."""
    peak = optim.peak_lr(global_batch_size)
    if optim.schedule == "polynomial" and peak <= POLYNOMIAL_END:
        yield f"optim.schedule=polynomial ends at {POLYNOMIAL_END:g}: optim.lr={peak:g} must be above"
