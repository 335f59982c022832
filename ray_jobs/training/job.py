"""A training job as a config: what is trained, where it runs, and where its record is kept."""

from pathlib import Path

from pydantic import Field

from dpo_core.recipe import TrainSection
from dpo_core.section import Section
from ray_jobs.cluster import ClusterSection
from ray_jobs.record.tracking import TrackingSection
from ray_jobs.validation.section import ValidationSection


class RunSection(Section):
    """Where the run lives. The same name in the same storage is the same run: it goes on where it stopped."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    storage: str = "runs"
    """Folder that holds the runs; on a cluster, one that every node sees under the same path."""


class TrainJob(TrainSection):
    """A training job: the training itself, where it runs, and where its record is kept."""

    run: RunSection = RunSection()
    cluster: ClusterSection = ClusterSection()
    tracking: TrackingSection = TrackingSection()
    validation: ValidationSection = ValidationSection()


def run_dir(job: TrainJob) -> Path:
    """The folder of the run, absolute."""
    return (Path(job.run.storage) / job.run.name).resolve()
