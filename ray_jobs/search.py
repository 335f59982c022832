"""What a sweep varies: dotted overrides of a training config, drawn by Ray Tune."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dpo_core.section import Section
from ray_jobs.config import ConfigError
from ray_jobs.settings.overrides import put
from ray_jobs.settings.problems import sentences
from ray_jobs.training.job import TrainJob


class Grid(Section):
    """Try every value."""

    kind: Literal["grid"] = "grid"
    values: list[Any] = Field(min_length=1)
    """The values, each tried with every value of the other grids."""

    def example(self) -> Any:
        return self.values[0]

    def for_tune(self) -> Any:
        from ray import tune

        return tune.grid_search(self.values)

    def for_optuna(self) -> Any:
        from ray import tune

        return tune.choice(self.values)


class Range(Section):
    """Draw between two bounds."""

    kind: Literal["range"] = "range"
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = True
    """Draw evenly in the logarithm, as learning rates and betas want it."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low ({self.low}) must be below high ({self.high}), and above 0 when log is true")
        return self

    def example(self) -> float:
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def for_tune(self) -> Any:
        from ray import tune

        return tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)

    for_optuna = for_tune


Dimension = Annotated[Grid | Range, Field(discriminator="kind")]


class SearchSection(Section):
    """The space and how it is searched."""

    space: dict[str, Dimension] = Field(default={}, min_length=1)
    """Dotted name of a training field -> the values to try."""
    algorithm: Literal["grid", "random", "optuna"] = "grid"
    """Every point of the grids, independent draws, or Optuna's TPE (which treats a grid as a choice)."""
    trials: int = Field(default=1, ge=1)
    """Draws to make; with the grid algorithm, draws for each point of the grids."""
    max_concurrent: int = Field(default=2, ge=1)
    """Trials that run at the same time."""
    cpus_per_trial: float = Field(default=1.0, gt=0)
    """CPUs of a trial that trains in its own process."""
    gpus_per_trial: float = Field(default=0.0, ge=0)
    """GPUs of a trial that trains in its own process."""
    seed: int = 0
    """Seed of the draws."""


def at_point(job: TrainJob, point: dict[str, Any]) -> TrainJob:
    """``job`` with the values of ``point``; raises ConfigError for a field or value that cannot be."""
    data = job.model_dump(mode="json")
    problems = []
    for name, value in point.items():
        try:
            put(data, name.split("."), value)
        except ValueError as error:
            problems.append(str(error))
    try:
        if not problems:
            return TrainJob.model_validate(data)
    except ValidationError as error:
        problems = sentences(TrainJob, error.errors())
    raise ConfigError(problems, "the search space")


def check_space(job: TrainJob, search: SearchSection) -> TrainJob:
    """Validate one drawn point before anything runs; returns the job at that point."""
    if any(name.startswith(("run.", "tracking.")) for name in search.space):
        raise ConfigError(
            ["search.space: run and tracking name the trials; they cannot be searched"], "the search space"
        )
    return at_point(job, {name: dimension.example() for name, dimension in search.space.items()})


def label_of(point: dict[str, Any]) -> str:
    """A point as a folder name: ``beta-500_lr-0.0001``."""
    parts = []
    for name, value in sorted(point.items()):
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name.rsplit('.', 1)[-1]}-{text}")
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in "_".join(parts))
