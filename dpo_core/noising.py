"""Forward processes: how noise is mixed into latents, and what the network is asked to predict."""

from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class Noising(Protocol):
    """A forward process. ``uniform`` in [0, 1) in, timesteps out; noise in, noisy latents and regression target out."""

    def sample_timesteps(self, uniform: Float[Tensor, " pairs"]) -> Int[Tensor, " pairs"]: ...

    def add_noise(
        self, latents: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]: ...

    def target(
        self, latents: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]: ...


@dataclass(frozen=True)
class EpsilonNoising:
    """Variance-preserving noising, the network predicts the noise (DDPM, arXiv 2006.11239, eq. 4 and 14)."""

    alphas_cumprod: Float[Tensor, " steps"]
    """The cumulative product of (1 - beta_t), float32; a property of the model's scheduler."""

    def sample_timesteps(self, uniform: Float[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
        """Uniform over all training timesteps."""
        steps = self.alphas_cumprod.shape[0]
        return (uniform.double() * steps).long().clamp_(max=steps - 1)

    def signal_and_noise(self, timesteps: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each ``[n, 1, 1, 1]``."""
        alpha_bar = self.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(
        self, latents: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def target(
        self, latents: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        del latents, timesteps
        return noise


@dataclass(frozen=True)
class VelocityNoising(EpsilonNoising):
    """The same noising, the network predicts v = alpha eps - sigma x (Salimans & Ho, arXiv 2202.00512, appendix D)."""

    def target(
        self, latents: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * noise - sigma * latents


def noising_of(scheduler_config: dict) -> EpsilonNoising:
    """The forward process a diffusers ``scheduler_config.json`` describes.

    Raises ValueError for a prediction type that this process cannot express.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kinds = {"epsilon": EpsilonNoising, "v_prediction": VelocityNoising}
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in kinds:
        raise ValueError(f"prediction_type {prediction_type!r} of the scheduler is not one of {sorted(kinds)}")
    scheduler: Any = DDPMScheduler.from_config(scheduler_config)
    return kinds[prediction_type](scheduler.alphas_cumprod.float())
