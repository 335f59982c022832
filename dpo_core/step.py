"""One preference step: a batch of pairs in, denoising errors out."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from dpo_core import randomness
from dpo_core.data.batches import PairBatch
from dpo_core.families.base import Conditioning
from dpo_core.noise import NoiseSection, input_noise, pair_noise, timestep_uniforms
from dpo_core.noising import Timesteps
from dpo_core.objectives.base import Objective, PairErrors
from dpo_core.policy import Policy
from dpo_core.timesteps import AnyTimesteps, Uniform


@dataclass(frozen=True)
class Denoising:
    """What a micro-batch asks of policy and reference: all chosen images first, then all rejected ones."""

    noisy: Float[Tensor, "n c h w"]
    target: Float[Tensor, "n c h w"]
    timesteps: Timesteps
    conditioning: Conditioning
    reference_conditioning: Conditioning
    """The same captions as the start weights encode them; another object only where a text encoder is trained."""
    pairs: int
    quality: Float[Tensor, "pairs 2 h w"] | None = None


def prepare_denoising(
    policy: Policy,
    objective: Objective,
    batch: PairBatch,
    seed: int,
    timesteps: AnyTimesteps | None = None,
    noise: NoiseSection | None = None,
) -> Denoising:
    """Noise both images of each pair alike.

    The images of a pair share noise and timestep (Wallace et al., arXiv 2311.12908, section 4); each has its own draw
    from the VAE posterior. Raises ValueError for patch quality maps that do not lie on the latents.
    """
    family, device = policy.family, policy.device
    sides = 2 if objective.needs_rejected else 1
    batch = flip_labels(batch) if objective.flips_labels else batch
    sampling, mixing = timesteps or Uniform(), noise or NoiseSection()
    names = (seed, batch.epochs, batch.pair_ids)

    latents = pair_latents(policy, batch, sides, seed)
    if batch.quality is not None and batch.quality.shape[-2:] != latents.shape[-2:]:
        given, needed = (" x ".join(map(str, shape[-2:])) for shape in (batch.quality.shape, latents.shape))
        raise ValueError(
            f"the patch quality maps (columns patch_quality_0 and _1) are {given}, but the latents are {needed}; the "
            "maps need one value per latent pixel at this data.resolution"
        )
    shared = pair_noise(mixing, tuple(latents.shape[1:]), *names).to(device).repeat(sides, 1, 1, 1)
    noising = family.noising.at_size(*latents.shape[-2:])
    levels = noising.timesteps_at(sampling.share(timestep_uniforms(*names))).to(device).repeat(sides)
    conditioning, reference_conditioning = policy.condition(batch, sides)
    return Denoising(
        noisy=noising.add_noise(latents, input_noise(mixing, shared, sides, *names), levels),
        target=noising.target(latents, shared, levels),
        timesteps=levels,
        conditioning=conditioning,
        reference_conditioning=reference_conditioning,
        pairs=len(batch.pair_ids),
        quality=batch.quality.to(device) if batch.quality is not None else None,
    )


def flip_labels(batch: PairBatch) -> PairBatch:
    """The same pairs with chosen and rejected exchanged; what is random for a pair stays with the place."""
    sides = {name: getattr(batch, name) for name in ("pixels", "posterior", "geometry", "quality")}
    return replace(
        batch,
        chosen_captions=batch.rejected_captions,
        rejected_captions=batch.chosen_captions,
        **{name: value.flip(1) for name, value in sides.items() if value is not None},
    )


def pair_errors(
    policy: Policy,
    objective: Objective,
    denoising: Denoising,
    *,
    needs_product: bool = False,
    huber_delta: float | None = None,
) -> PairErrors:
    """How well policy and reference denoise: every map that ``objective`` reads, in float32.

    Errors are reduced in float32 whatever the precision of the forward pass: with beta in the thousands a
    half-precision reduction turns ln 2 at step 0 into anything between 0 and 4. ``needs_product`` asks for the product
    of the residuals as well (the winner-preserving guard); ``huber_delta`` is as in ``ShapingSection``.
    """
    pairs, noisy, timesteps = denoising.pairs, denoising.noisy, denoising.timesteps
    reference: Tensor | None = None
    if objective.needs_reference:
        reference = policy.predict_reference(noisy, timesteps, denoising.reference_conditioning).float()
    prediction = policy.predict(noisy, timesteps, denoising.conditioning).float()
    target = denoising.target.float()

    residual = prediction - target
    errors = penalty(residual, huber_delta).mean(dim=1).split(pairs)
    frozen = penalty(reference - target, huber_delta).mean(dim=1).split(pairs) if reference is not None else ()
    shift = product = None
    if objective.needs_shift:
        assert reference is not None
        shift = (prediction[:pairs] - reference[:pairs]).square().mean(dim=1)
    if needs_product:
        product = (residual[:pairs] * residual[pairs:]).mean(dim=1)
    return PairErrors(
        timesteps=timesteps[:pairs],
        policy_chosen=errors[0],
        policy_rejected=errors[1] if len(errors) == 2 else None,
        reference_chosen=frozen[0] if frozen else None,
        reference_rejected=frozen[1] if len(frozen) == 2 else None,
        chosen_shift=shift,
        residual_product=product,
        chosen_quality=denoising.quality[:, 0] if denoising.quality is not None else None,
        rejected_quality=denoising.quality[:, 1] if denoising.quality is not None else None,
    )


def penalty(residual: Float[Tensor, "n c h w"], huber_delta: float | None) -> Float[Tensor, "n c h w"]:
    """The square of each residual, continued by its tangent beyond ``huber_delta``."""
    if huber_delta is None:
        return residual.square()
    inside = residual.abs().clamp(max=huber_delta)
    return inside * (2 * residual.abs() - inside)


def pair_latents(policy: Policy, batch: PairBatch, sides: int, seed: int) -> Float[Tensor, "n c h w"]:
    """Sampled and scaled latents: all chosen first, then all rejected."""
    family, device = policy.family, policy.device
    if batch.posterior is not None:
        posterior = batch.posterior[:, :sides].to(device)
        mean, std = posterior[:, :, 0].transpose(0, 1).flatten(0, 1), posterior[:, :, 1].transpose(0, 1).flatten(0, 1)
    else:
        assert batch.pixels is not None
        mean, std = family.encode_images(batch.pixels[:, :sides].to(device).transpose(0, 1).flatten(0, 1))
    shape = (2, *mean.shape[1:])
    draws = randomness.normal(shape, seed, batch.epochs, batch.pair_ids, "posterior")[:, :sides]
    return family.scale_latents(mean + std * draws.transpose(0, 1).flatten(0, 1).to(device))
