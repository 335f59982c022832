"""Joining or starting Ray, and what a job asks of it."""

import logging
import os
from pathlib import Path

from pydantic import Field, model_validator

from dpo_core.section import Section


class ClusterSection(Section):
    """What the job asks of the cluster; none of it touches the mathematics."""

    num_workers: int = Field(default=1, ge=0)
    """Processes that train or encode; 0 does the work in this very process, without Ray."""
    min_workers: int | None = Field(default=None, ge=1)
    """Train with as few workers as this while nodes are missing, and with more when they are back; null waits for all
    of ``num_workers``. The result does not depend on it beyond rounding."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """CPUs that a training worker holds; leave some for the tasks that read data."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs of a training worker; null takes one each when the cluster has that many, else none."""
    cpus_per_read: float = Field(default=0.25, gt=0)
    """CPUs of a task that reads and decodes pairs."""
    max_failures: int = Field(default=3, ge=0)
    """How often a crashed worker group is started again from its last checkpoint. Losses of nodes that were announced
    do not count."""

    @model_validator(mode="after")
    def _counts_fit(self) -> "ClusterSection":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most num_workers ({self.num_workers})")
        return self


def start_ray(quiet: bool = True) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names (a submitted job has it set), or start one on this machine."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # One footer reader instead of 32: on a small machine they cost more than the reading itself.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # How long Ray waits for places for the workers before it counts the nodes again. Starting workers takes longer, but
    # is not meant; a node that has just gone costs all of it.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # `uv run` environments would be rebuilt for each worker; ours is installed already.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    level = logging.ERROR if quiet else logging.INFO
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=not quiet, logging_level=level)
        return
    python_path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=not quiet,
        logging_level=level,
        runtime_env={"env_vars": {"PYTHONPATH": python_path}},
    )


def check_fits(cluster: ClusterSection) -> None:
    """Raise ValueError when workers would leave no CPU for the tasks that read: both would wait for ever.

    Only of a cluster on this machine: another one may grow when it is asked to.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources().get("CPU", 0)
    asked = cluster.num_workers * cluster.cpus_per_worker + cluster.cpus_per_read
    if asked > there:
        raise ValueError(
            f"{cluster.num_workers} workers of {cluster.cpus_per_worker:g} CPUs and one reading task of "
            f"{cluster.cpus_per_read:g} ask for {asked:g} CPUs, the cluster has {there:g}; lower cluster.num_workers, "
            "cluster.cpus_per_worker or cluster.cpus_per_read"
        )


def gpus_each(cluster: ClusterSection) -> float:
    """GPUs that each worker gets on the cluster that is joined."""
    import ray

    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    available = ray.cluster_resources().get("GPU", 0)
    return 1.0 if available >= max(cluster.num_workers, 1) else 0.0
