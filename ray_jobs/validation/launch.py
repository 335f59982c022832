"""Validation as the driver sees it: started with the training, told about as it goes, waited for at the end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dpo_core.data.plan import Plan
from dpo_core.metrics import read_complete_rows
from dpo_core.mirror import END_LIMIT_S, Mirror
from dpo_core.stopping import stop_asked
from ray_jobs.training.job import TrainJob
from ray_jobs.validation.book import FILE, WORK
from ray_jobs.validation.pairs import HeldOut, held_out_data
from ray_jobs.validation.told import doing, in_words
from ray_jobs.validation.validator import ENDED
from ray_jobs.validation.worker import ActorWorker, ProcessWorker, Worker


@contextmanager
def validated(job: TrainJob, run_dir: Path, plan: Plan, console: Console) -> Iterator[None]:
    """Inside, the checkpoints of the run are validated; at the end the last one is waited for, unless a stop is asked.

    Nothing that goes wrong with validation ends the training: it is told at the end and stands in the status. Raises
    ValueError, before anything is trained, when the held-out pairs cannot be read or are all trained on.
    """
    if not job.validation.enabled:
        yield
        return
    check_prompts(job)
    (run_dir / WORK).mkdir(parents=True, exist_ok=True)
    (run_dir / ENDED).unlink(missing_ok=True)
    if job.validation.paths:
        held_out = HeldOut.choose(Plan.build(held_out_data(job.data, job.validation)), plan, job.validation)
        held_out.save(run_dir)
        if held_out.trained_on:
            console.print(f"validation: {held_out.trained_on} pairs are trained on and were left out")
    there = job.cluster.num_workers == 0
    worker = ProcessWorker(run_dir) if there else ActorWorker(run_dir, job.validation, job.cluster)
    teller = Teller(run_dir, console)
    try:
        yield
        if not stop_asked(run_dir):
            (run_dir / ENDED).touch()
            told = wait(worker, run_dir, console)
            if told:
                said = f"validation: {told}. The training is complete and does not depend on it."
                console.print(said, style="bold red", markup=False, soft_wrap=True)
            send(job, run_dir, console)
    finally:
        worker.stop()
        teller.close()


def send(job: TrainJob, run_dir: Path, console: Console) -> None:
    """Bring what came after the end of the training to the run's copy in object storage, where it has one."""
    if job.loop.mirror is None:
        return
    with console.status("uploading what validation found"):
        mirror = Mirror(f"{job.loop.mirror.rstrip('/')}/{job.run.name}", run_dir, job.loop.keep_checkpoints)
        if missing := mirror.finish(END_LIMIT_S):
            console.print(f"not in {mirror.url}: {', '.join(missing)}", style="yellow", markup=False, soft_wrap=True)


def check_prompts(job: TrainJob) -> None:
    """ValueError when images are asked for that this program does not know how to draw."""
    if job.validation.prompts and job.policy.method == "ip_adapter":
        raise ValueError(
            "validation.prompts draws from text alone, which a model with an IP-Adapter does not do; leave it empty "
            "and use `palate dreambench` for images"
        )


def plan_row(job: TrainJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells of the validation; nothing when it is off."""
    section = job.validation
    if not section.enabled:
        return []
    check_prompts(job)
    every = f"{section.every:,} updates" if section.every else "checkpoint"
    parts = [f"{section.pairs} held-out pairs at {section.levels} noise levels"] if section.paths else []
    parts += [f"{len(section.prompts)} images"] if section.prompts else []
    where = "a process beside the training" if job.cluster.num_workers == 0 else "an actor on the cluster"
    return [("validation", f"{' and '.join(parts)} at every {every}, by {where}")]


def wait(worker: Worker, run_dir: Path, console: Console) -> str:
    """Until everything is validated or a stop is asked; why it was not, or nothing."""
    with console.status("validation") as status:
        while (end := worker.poll()) is None:
            if stop_asked(run_dir):
                return "left for the next start, since a stop was asked"
            status.update(f"validation: {doing(run_dir) or 'starting'}")
            time.sleep(0.2)
    return end


class Teller:
    """A thread that tells each new row of the validation on the console."""

    def __init__(self, run_dir: Path, console: Console) -> None:
        self.run_dir, self.console = run_dir, console
        self.seen = len(read_complete_rows(run_dir / FILE))
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.over.wait(0.5):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        rows = read_complete_rows(self.run_dir / FILE)
        for row in rows[self.seen :]:
            style = "bold red" if "failed" in row else "yellow" if "left_out" in row else None
            self.console.print(in_words(row), style=style, markup=False, highlight=False, soft_wrap=True)
        self.seen = len(rows)
