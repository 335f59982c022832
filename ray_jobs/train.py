"""palate train: teach a model what people prefer."""

import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from dpo_core.context import LocalContext
from dpo_core.data.batches import PairBatch, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import counts_by_reason, read_quarantine, told_counts
from dpo_core.resume import refuse_to_go_on
from dpo_core.stopping import clear_stop, signals_stop, stop_asked
from dpo_core.training import train
from ray_jobs.cluster import check_fits, gpus_each, start_ray
from ray_jobs.config import run_verb, save_config
from ray_jobs.record.progress import training_progress
from ray_jobs.record.runlog import full_disk_is_users, logged_end, shown_log, written_log
from ray_jobs.record.tracking import track_run
from ray_jobs.training.alone import only_one
from ray_jobs.training.job import TrainJob, run_dir
from ray_jobs.validation.launch import plan_row, validated

log = logging.getLogger(__name__)
LOOK_FOR_NODES_EVERY_S = 30.0
"""How often Ray looks whether it could start anew with more workers, where workers are missing."""


def plan_rows(job: TrainJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    plan = Plan.build(job.data)
    loop = job.loop
    share = loop.global_batch_size / max(job.cluster.num_workers, 1)
    return [
        ("run folder", str(run_dir(job))),
        ("model", place_of(job.family.source)),
        ("usable pairs", f"{plan.rows:,} ({len(plan.quarantined)} in quarantine, {plan.ties} ties left out)"),
        ("updates", f"{loop.max_steps:,} of {loop.global_batch_size} pairs = {epochs(job, plan):.2f} epochs"),
        ("accumulation", f"{-(-share // loop.worker_batch_size):.0f} forward passes per update and worker"),
        ("workers", "in this process" if job.cluster.num_workers == 0 else str(job.cluster.num_workers)),
        *plan_row(job),
    ]


def place_of(model: str) -> str:
    """Where a model comes from, as far as this machine can tell; the workers may see other folders."""
    if Path(model).exists():
        return str(Path(model).resolve())
    return f"{model} ({'there is no such folder on this machine' if Path(model).is_absolute() else 'from the hub'})"


def epochs(job: TrainJob, plan: Plan) -> float:
    return job.loop.max_steps * job.loop.global_batch_size / max(plan.rows, 1)


def run_training(job: TrainJob, console: Console | None = None) -> Path:
    """Train as ``job`` says, or go on with the run of that name; returns the run folder.

    Raises ValueError when the data cannot be read, the run was started with another config, or it is running already.
    """
    console = console or Console()
    folder = run_dir(job)
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_is_users(folder), only_one(folder):
        plan = Plan.build(job.data)
        refuse_to_go_on(folder / "checkpoints", job, plan)
        with logged_end(folder):
            train_in(folder, job, plan, console)
    if stop_asked(folder):
        clear_stop(folder)
        if (done := updates_done(folder)) < job.loop.max_steps:
            console.print(f"stopped after update {done} of {job.loop.max_steps}; the same command goes on")
    return folder


def train_in(folder: Path, job: TrainJob, plan: Plan, console: Console) -> None:
    """Train, with all that goes on beside it."""
    save_config(job, folder / "config.yaml")
    clear_stop(folder)
    if job.cluster.num_workers > 0:
        start_ray()  # before `signals_stop`: Ray takes SIGTERM for itself
    with (
        signals_stop(folder),
        track_run(job.tracking, folder, name=job.run.name, config=job),
        validated(job, folder, plan, console),
        training_progress(
            folder, job.loop.max_steps, console, job.run.name, global_batch_size=job.loop.global_batch_size
        ),
        shown_log(folder, console) if job.cluster.num_workers > 0 else written_log(folder),
    ):
        if job.cluster.num_workers == 0:
            train_here(job, folder, plan)
        else:
            train_on_ray(job, folder)


def updates_done(folder: Path) -> int:
    """Updates that the newest checkpoint has."""
    return max(
        (int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-????????")), default=0
    )


def train_here(job: TrainJob, folder: Path, plan: Plan) -> None:
    """One process, no Ray."""
    context = LocalContext(folder)
    log.info("in this process, on %s", context.device)

    def batches(start: int) -> Iterator[list[PairBatch]]:
        return step_batches(plan, job.data, job.loop.share(context), start)

    train(job, context, plan, batches, name=job.run.name)


def train_on_ray(job: TrainJob, folder: Path) -> None:
    """A Ray Train worker group, each worker fed by Ray Data."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from ray_jobs.training.workers import AfterFailure, BeforeRestart, HearingTorch, fit, users_error

    start_ray()
    check_fits(job.cluster)
    gpus = gpus_each(job.cluster)
    resources = {"CPU": job.cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    workers, fewest = job.cluster.num_workers, job.cluster.min_workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.model_dump(mode="json"), "folder": str(folder)},
        torch_config=HearingTorch(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if fewest is None else (fewest, workers),
            use_gpu=gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=LOOK_FOR_NODES_EVERY_S,
        ),
        run_config=ray.train.RunConfig(
            # Ray's own state of this attempt; the run's state is ours, in `folder`.
            name=attempt_name(folder),
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=job.cluster.max_failures, max_preemption_failures=-1),
            # Ray takes callbacks of its controller too; its types do not say so.
            callbacks=[AfterFailure(), BeforeRestart()],  # pyright: ignore[reportArgumentType]
        ),
    )
    try:
        fit(trainer)
    except ray.train.TrainingFailedError as error:
        if (users := users_error(error)) is not None:
            raise ValueError(str(users)) from error
        raise


def attempt_name(folder: Path) -> str:
    return f"attempt-{sum(1 for _ in (folder / 'ray').glob('attempt-*'))}"


def train_worker(task: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    from ray_jobs.stream import ray_step_batches
    from ray_jobs.training.context import RayContext

    job = TrainJob.model_validate(task["job"])
    context = RayContext(task["folder"], wanted_workers=job.cluster.num_workers)
    plan = Plan.build(job.data)

    def batches(start: int) -> Iterator[list[PairBatch]]:
        return ray_step_batches(
            plan,
            job.data,
            job.loop.share(context),
            start,
            job.loop.max_steps,
            cpus_per_read=job.cluster.cpus_per_read,
        )

    log_file = written_log(context.run_dir) if context.rank == 0 else nullcontext()
    with full_disk_is_users(context.run_dir), log_file:
        log.info("%d of %d workers: %s", context.world_size, job.cluster.num_workers, "; ".join(context.places))
        train(job, context, plan, batches, name=job.run.name)


def main(argv: list[str] | None = None) -> int:
    def run(job: TrainJob) -> None:
        folder = run_training(job)
        for what, path in (("model  ", folder / "model"), ("metrics", folder / "metrics.jsonl")):
            if path.exists():
                Console().print(f"{what} {path}")
        reasons = counts_by_reason(read_quarantine(folder / "quarantine.parquet"))
        Console().print(f"rows that could not be used: {told_counts(reasons) or 'none'}")

    return run_verb(schema=TrainJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["train", *sys.argv[1:]]))
