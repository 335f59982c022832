"""The pool of workers that draws and scores a comparison on the cluster."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpo_core.section import Section
from eval.evaluation import Piece, Work, draw_and_score, finished
from eval.scorers.base import Scorer
from ray_jobs.cluster import start_ray


class TasksSection(Section):
    """How the images are spread over the cluster: a pool of workers, each with a model in memory."""

    images_per_task: int = Field(default=32, ge=1)
    """Images that a worker draws and scores at a time; what an interruption loses."""
    workers: int | None = Field(default=None, ge=1)
    """Workers in the pool; null takes as many as fit into the cluster, at most one for every task."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    """CPUs of a worker."""
    gpus_per_task: float | None = Field(default=None, ge=0)
    """GPUs of a worker, a fraction shares one; null takes one where the cluster has any."""


class Artist:
    """A worker of the pool: draws and scores pieces, and keeps model and scorers in memory from one to the next."""

    def __init__(self, scorers: Sequence[Scorer], out: str, device: str) -> None:
        self.scorers, self.out, self.device = scorers, out, device

    def work(self, piece: Piece) -> list[dict[str, Any]]:
        return draw_and_score(piece, self.scorers, self.out, self.device)


def run_pool(tasks: TasksSection, work: Work, out: Path, console: Console) -> list[dict[str, Any]]:
    """The score rows of all ``work``, in order of completion. A worker that dies is started again.

    What is finished from an earlier run is read here; if that is all, no cluster is started.
    """
    import ray
    from ray.exceptions import RayTaskError

    scorers, every = work.plan.scorers, work.pieces(tasks.images_per_task)
    done = [finished(piece, scorers, out) for piece in every]
    kept = [piece for piece, ready in zip(every, done, strict=True) if ready]
    pieces = [piece for piece, ready in zip(every, done, strict=True) if not ready]
    scores = [row for piece in kept for row in draw_and_score(piece, scorers, out, "cpu")]
    if kept:
        console.print(f"{sum(len(piece.rows) for piece in kept):,} images and their scores are there from before")
    if not pieces:
        return scores
    start_ray()
    resources = ray.cluster_resources()
    gpus = tasks.gpus_per_task
    if gpus is None:
        gpus = 1.0 if resources.get("GPU", 0) else 0.0
    fitting = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1) / tasks.cpus_per_task
    size = max(1, min(len(pieces), tasks.workers or int(fitting)))
    artist = ray.remote(num_cpus=tasks.cpus_per_task, num_gpus=gpus, max_restarts=3, max_task_retries=3)(Artist)
    pool: list[Any] = [artist.remote(scorers, str(out), "cuda" if gpus else "cpu") for _ in range(size)]
    waiting = dealt(pieces, size)
    pending: dict[Any, tuple[int, int]] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )

    def hand_out(worker: int) -> None:
        mine = waiting[worker] or max(waiting, key=len)  # who is done helps the one with most left
        if mine:
            piece = mine.pop(0)
            pending[pool[worker].work.remote(piece)] = (worker, len(piece.rows))

    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("drawing and scoring images", total=sum(len(piece.rows) for piece in pieces))
            for worker in range(size):
                hand_out(worker)
            while pending:
                ready, _ = ray.wait(list(pending))
                for reference in ready:
                    worker, images = pending.pop(reference)
                    scores += ray.get(reference)
                    progress.advance(bar, images)
                    hand_out(worker)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from error
        raise
    finally:
        for worker in pool:
            ray.kill(worker)
    return scores


def dealt(pieces: Sequence[Piece], workers: int) -> list[list[Piece]]:
    """A run of neighbouring pieces for each worker, so that it changes its model as seldom as can be."""
    share, more = divmod(len(pieces), workers)
    ends = [i * share + min(i, more) for i in range(workers + 1)]
    return [list(pieces[start:end]) for start, end in pairwise(ends)]
