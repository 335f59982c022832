"""One preference step: a batch of pairs in, denoising errors out."""

import torch
from jaxtyping import Float
from torch import Tensor

from dpo_core import randomness
from dpo_core.data.batches import PairBatch
from dpo_core.objectives.base import Objective, PairErrors
from dpo_core.policy import Policy


def pair_errors(policy: Policy, objective: Objective, batch: PairBatch, seed: int) -> PairErrors:
    """Noise both images of each pair alike and measure how well policy and reference denoise them.

    The images of a pair share noise and timestep (Wallace et al., arXiv 2311.12908, section 4); each has its own draw
    from the VAE posterior. Errors are reduced in float32 whatever the precision of the forward pass: with beta in
    the thousands a half-precision reduction turns ln 2 at step 0 into anything between 0 and 4.
    """
    family, device = policy.family, policy.device
    sides = 2 if objective.needs_rejected else 1
    pairs = len(batch.pair_ids)

    latents = pair_latents(policy, batch, sides, seed)
    noise = randomness.normal(tuple(latents.shape[1:]), seed, batch.epochs, batch.pair_ids, "noise").to(device)
    uniform = torch.tensor(
        [
            randomness.uniform(seed, epoch, pair, "timestep")
            for epoch, pair in zip(batch.epochs, batch.pair_ids, strict=True)
        ],
        dtype=torch.float64,
    )
    timesteps = family.noising.sample_timesteps(uniform).to(device)

    captions = batch.chosen_captions + batch.rejected_captions if sides == 2 else batch.chosen_captions
    text = family.encode_text(captions)
    noise, repeated = noise.repeat(sides, 1, 1, 1), timesteps.repeat(sides)
    noisy = family.noising.add_noise(latents, noise, repeated)
    target = family.noising.target(latents, noise, repeated)

    reference: tuple[Tensor, ...] = ()
    if objective.needs_reference:
        reference = error_map(policy.predict_reference(noisy, repeated, text), target).split(pairs)
    errors = error_map(policy.predict(noisy, repeated, text), target).split(pairs)
    return PairErrors(
        timesteps=timesteps,
        policy_chosen=errors[0],
        policy_rejected=errors[1] if sides == 2 else None,
        reference_chosen=reference[0] if reference else None,
        reference_rejected=reference[1] if len(reference) == 2 else None,
    )


def pair_latents(policy: Policy, batch: PairBatch, sides: int, seed: int) -> Float[Tensor, "n c h w"]:
    """Sampled and scaled latents: all chosen first, then all rejected."""
    family, device = policy.family, policy.device
    if batch.posterior is not None:
        posterior = batch.posterior[:, :sides].to(device)
        mean, std = posterior[:, :, 0].transpose(0, 1).flatten(0, 1), posterior[:, :, 1].transpose(0, 1).flatten(0, 1)
    else:
        assert batch.pixels is not None
        mean, std = family.encode_images(batch.pixels[:, :sides].transpose(0, 1).flatten(0, 1))
    shape = (2, *mean.shape[1:])
    draws = randomness.normal(shape, seed, batch.epochs, batch.pair_ids, "posterior")[:, :sides]
    return family.scale_latents(mean + std * draws.transpose(0, 1).flatten(0, 1).to(device))


def error_map(prediction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
    """Squared error averaged over channels, in float32."""
    return (prediction.float() - target.float()).square().mean(dim=1)
