"""What a user may say about validation."""

from typing import Literal

from pydantic import Field, model_validator

from dpo_core.section import Section
from eval.generate import SamplerSection, Scheduler

Metric = Literal[
    "implicit_accuracy",
    "margin",
    "chosen_error",
    "rejected_error",
    "chosen_error_vs_reference",
    "rejected_error_vs_reference",
]


class GridSampler(SamplerSection):
    """How the images of the sample grids are drawn."""

    scheduler: Scheduler = "model"
    """The solver: `model` for the one in the model's folder, or ddim, dpmpp, euler, pndm."""
    num_inference_steps: int = Field(default=25, ge=1)
    """Denoising steps of an image."""


class BestSection(Section):
    """Which checkpoint's model is kept in the folder ``best`` of the run, whatever becomes of the checkpoint."""

    metric: Metric | None = "implicit_accuracy"
    """The held-out number that picks it (a validated checkpoint after update 0); null keeps none."""
    mode: Literal["max", "min"] = "max"
    """Whether more is better (max) or less (min: the errors)."""


class ValidationSection(Section):
    """Held-out numbers and sample images of every checkpoint, made by a process of its own that training never waits
    for. Training ends with the same bits with it and without it."""

    enabled: bool = False
    """Whether to validate."""
    paths: list[str] = []
    """Held-out pairs, in any form that data.paths takes; all else about them is as in `data`, without crops at random,
    mirroring and dropout. Pairs that are trained on are left out and counted. Empty: no numbers, only images."""
    pairs: int = Field(default=64, ge=1)
    """How many held-out pairs to measure: a fixed choice, by a hash of `seed` and pair id."""
    levels: int = Field(default=5, ge=1)
    """Noise levels at which each pair is measured: one in each of that many equal parts of the schedule."""
    seed: int = 0
    """Seed of the held-out pairs' noise and timesteps and of the images; equal seeds make runs comparable."""
    batch_size: int = Field(default=8, ge=1)
    """Pairs per forward pass."""
    every: int | None = Field(default=None, ge=1)
    """Validate the first checkpoint after every so many updates; null validates all of them. Update 0 (the start
    weights) and the last one are always validated."""
    prompts: list[str] = []
    """Prompts of the sample grids `samples/step-*.png` (start weights | previous | now); empty draws none."""
    sampler: GridSampler = GridSampler()
    keep_best: BestSection = BestSection()
    cpus: float = Field(default=0.5, gt=0)
    """CPUs that the validation actor holds on a Ray cluster."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs that it holds. null takes a whole one where the cluster has more of them than workers, else none. Without
    Ray (cluster.num_workers=0), null takes the machine's second one; more than 0 shares the only one with the training,
    which then has less memory."""

    @model_validator(mode="after")
    def _has_work(self) -> "ValidationSection":
        if self.enabled and not self.paths and not self.prompts:
            raise ValueError(
                "enabled needs something to do: held-out pairs in paths, prompts for sample grids in prompts, or both"
            )
        return self
