"""Forward processes: how noise is mixed into latents, and what the network is asked to predict."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Latents = Float[Tensor, "n c h w"]
Timesteps = Int[Tensor, " n"] | Float[Tensor, " n"]
"""What the network is told: from 0 (no noise) to ``num_timesteps`` (pure noise); integers where it was trained so."""


class Noising(Protocol):
    """A forward process."""

    @property
    def num_timesteps(self) -> int:
        """Length of the schedule."""
        ...

    def at_size(self, height: int, width: int) -> "Noising":
        """The process for latents of this size: itself, unless larger images are noised more."""
        ...

    def timesteps_at(self, share: Float[Tensor, " n"]) -> Timesteps:
        """The timesteps at shares of the schedule, each in [0, 1), float64."""
        ...

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents: ...

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents: ...

    def snr(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        """Signal-to-noise ratio: squared share of the latents over squared share of the noise."""
        ...

    def error_per_signal_error(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        """Squared error of the prediction over the squared error that it means for the noise-free latents."""
        ...


@dataclass(frozen=True)
class EpsilonNoising:
    """Variance-preserving noising, the network predicts the noise (DDPM, arXiv 2006.11239, eq. 4 and 14)."""

    alphas_cumprod: Float[Tensor, " steps"]
    """The cumulative product of (1 - beta_t), float32; a property of the model's scheduler."""

    @property
    def num_timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]

    def at_size(self, height: int, width: int) -> "EpsilonNoising":
        del height, width
        return self

    def timesteps_at(self, share: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        return (share.double() * self.num_timesteps).long().clamp_(0, self.num_timesteps - 1)

    def _alpha_bar(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        return self.alphas_cumprod.to(timesteps.device)[timesteps]

    def signal_and_noise(self, timesteps: Timesteps) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each ``[n, 1, 1, 1]``."""
        alpha_bar = self._alpha_bar(timesteps)[:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        del latents, timesteps
        return noise

    def snr(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        alpha_bar = self._alpha_bar(timesteps)
        return alpha_bar / (1 - alpha_bar)

    def error_per_signal_error(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        return self.snr(timesteps)


@dataclass(frozen=True)
class VelocityNoising(EpsilonNoising):
    """The same noising, the network predicts v = alpha eps - sigma x (Salimans & Ho, arXiv 2202.00512, appendix D)."""

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * noise - sigma * latents

    def error_per_signal_error(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        return self.snr(timesteps) + 1


@dataclass(frozen=True)
class SizeShift:
    """A shift that grows with the image: log shift is linear in the number of patches, as FLUX.1 dev was trained.

    The names are those of a scheduler with ``use_dynamic_shifting``; mu runs from ``base_shift`` at
    ``base_image_seq_len`` patches to ``max_shift`` at ``max_image_seq_len``, and beyond.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    patch: int = 2
    """Side of a patch in latents."""
    exponential: bool = True
    """Whether shift = exp(mu) or mu itself (``time_shift_type``)."""

    def __call__(self, height: int, width: int) -> float:
        """The shift for latents of this size."""
        patches = (height // self.patch) * (width // self.patch)
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = self.base_shift + slope * (patches - self.base_image_seq_len)
        return math.exp(mu) if self.exponential else mu


@dataclass(frozen=True)
class RectifiedFlow:
    """A straight path from latents to noise, the network predicts its velocity (arXiv 2209.03003; 2403.03206, eq. 13).

    noisy = (1 - sigma) x + sigma eps, target = eps - x, timestep = 1000 sigma.
    """

    shift: float | SizeShift = 1.0
    """Moves the schedule to high noise: sigma = shift s / (1 + (shift - 1) s) (arXiv 2403.03206, eq. 23)."""

    @property
    def num_timesteps(self) -> int:
        return 1000

    def at_size(self, height: int, width: int) -> "RectifiedFlow":
        return RectifiedFlow(self.shift(height, width)) if isinstance(self.shift, SizeShift) else self

    def timesteps_at(self, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        assert not isinstance(self.shift, SizeShift), "this flow depends on the size of the latents: ask at_size first"
        share = share.double()
        return (self.num_timesteps * (self.shift * share / (1 + (self.shift - 1) * share))).float()

    def _sigma(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        return timesteps / self.num_timesteps

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        sigma = self._sigma(timesteps)[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        del timesteps
        return noise - latents

    def snr(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        sigma = self._sigma(timesteps)
        return ((1 - sigma) / sigma.clamp(min=1e-6)).square()

    def error_per_signal_error(self, timesteps: Timesteps) -> Float[Tensor, " n"]:
        return self._sigma(timesteps).clamp(min=1e-6).pow(-2)


def flow_of(scheduler_config: dict, *, patch: int, shift: float | None = None) -> RectifiedFlow:
    """The rectified flow a diffusers ``scheduler_config.json`` describes; ``shift`` overrides the config's.

    ``patch`` is the side of the denoiser's patches in latents. Raises ValueError when the config is not of a flow.
    """
    given = {name: value for name, value in scheduler_config.items() if value is not None}
    static = given.get("shift", given.get("flow_shift"))
    if static is None:
        raise ValueError(f"the scheduler {given.get('_class_name', '')} has no shift: it is not one of flow matching")
    if shift is None and given.get("use_dynamic_shifting", False):
        names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        sizes = {name: given[name] for name in names if name in given}
        exponential = given.get("time_shift_type", "exponential") == "exponential"
        return RectifiedFlow(SizeShift(**sizes, patch=patch, exponential=exponential))
    return RectifiedFlow(float(static if shift is None else shift))


def noising_of(scheduler_config: dict, *, zero_terminal_snr: bool | None = None) -> EpsilonNoising:
    """The forward process a diffusers ``scheduler_config.json`` describes.

    ``zero_terminal_snr`` overrides the config's ``rescale_betas_zero_snr``. Raises ValueError for a prediction type
    that this process cannot express.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kinds = {"epsilon": EpsilonNoising, "v_prediction": VelocityNoising}
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in kinds:
        raise ValueError(f"prediction_type {prediction_type!r} of the scheduler is not one of {sorted(kinds)}")
    rescale = scheduler_config.get("rescale_betas_zero_snr", False)
    scheduler: Any = DDPMScheduler.from_config(dict(scheduler_config) | {"rescale_betas_zero_snr": False})
    alphas_cumprod = scheduler.alphas_cumprod.float()
    if rescale if zero_terminal_snr is None else zero_terminal_snr:
        alphas_cumprod = rescale_to_zero_terminal_snr(alphas_cumprod)
    return kinds[prediction_type](alphas_cumprod)


def rescale_to_zero_terminal_snr(alphas_cumprod: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Shift and scale sqrt(alpha_bar) so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square().to(torch.float32)
