"""What a training run is: model, objective, data, how long."""

from pydantic import Field, model_validator

from dpo_core.context import RunContext
from dpo_core.data.batches import Share
from dpo_core.data.section import DataSection
from dpo_core.families import SD15, AnyFamily, Precision
from dpo_core.noise import NoiseSection
from dpo_core.objectives import DPO, AnyObjective
from dpo_core.optim import OptimSection
from dpo_core.policy import PolicySection
from dpo_core.requirements import family_needs, objective_needs, optim_needs, policy_needs, shaping_needs
from dpo_core.section import Section
from dpo_core.shaping import ShapingSection
from dpo_core.timesteps import AnyTimesteps, Uniform


class LoopSection(Section):
    """How long and in what pieces to train."""

    seed: int = 0
    """Seed of everything random in the run."""
    max_steps: int = Field(default=2000, ge=1)
    """Updates to make."""
    global_batch_size: int = Field(default=32, ge=1)
    """Pairs per update, over all workers and accumulation steps."""
    worker_batch_size: int = Field(default=8, ge=1)
    """Pairs per forward pass on one worker; the rest of its share is accumulated."""
    precision: Precision = "fp32"
    """Precision of forward and backward passes; weights, errors and updates stay in float32."""
    log_every: int = Field(default=10, ge=1)
    """Updates between two rows of metrics.jsonl."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Updates between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints to keep."""
    background_checkpoints: bool = True
    """Train on while a checkpoint is written, from a copy in the machine's memory that is as large as the checkpoint;
    false saves that memory and lets every update at which one is due wait for the disk."""
    mirror: str | None = None
    """Where a copy of the run folder is kept up beside the training, such as s3://bucket/runs; an empty run folder goes
    on from there. A URL of fsspec without credentials, or a path; null keeps none."""
    export_dtype: Precision = "fp32"
    """Precision of the exported weights."""
    max_skipped_in_a_row: int = Field(default=20, ge=0)
    """End the run when the gradient of more updates than this in a row is not finite, or a spike; each is skipped."""
    spike_factor: float | None = Field(default=None, gt=1)
    """Leave out an update whose gradient norm is more than this many times the median of those before it, such as 10;
    null leaves none out. The pairs of each are written to ``spikes.jsonl``."""
    spike_window: int = Field(default=50, ge=2)
    """Of how many updates ``spike_factor`` takes the median; the first ones are never left out."""
    chosen_error_alarm: float = Field(default=0.05, ge=0)
    """Warn when the error of the chosen images stays above the reference's by more than this share of it."""

    @model_validator(mode="after")
    def _windows_fit(self) -> "LoopSection":
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every}), "
                "or a resumed run would log other means than an uninterrupted one"
            )
        return self

    def share(self, context: RunContext) -> Share:
        """What the process of ``context`` trains on."""
        return Share(self.seed, self.global_batch_size, self.worker_batch_size, context.rank, context.world_size)


class TrainSection(Section):
    """A training run: which model, which objective, which data, how long."""

    family: AnyFamily = SD15()
    objective: AnyObjective = DPO()
    shaping: ShapingSection = ShapingSection()
    timesteps: AnyTimesteps = Uniform()
    noise: NoiseSection = NoiseSection()
    policy: PolicySection = PolicySection()
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    loop: LoopSection = LoopSection()

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainSection":
        problems = [
            *family_needs(self.family),
            *objective_needs(self.objective, self.data),
            *shaping_needs(self.shaping, self.objective),
            *policy_needs(self.policy, self.family, self.data, self.optim),
            *optim_needs(self.optim, self.loop.global_batch_size),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self
