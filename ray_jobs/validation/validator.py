"""The validator: watches the checkpoints of a run and judges them, in a process of its own."""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ray_jobs.config import load_config
from ray_jobs.record.journal import replace_json
from ray_jobs.training.job import TrainJob
from ray_jobs.validation import best
from ray_jobs.validation.bench import Bench, setup_of
from ray_jobs.validation.book import LOCK, NOW, PREFIX, WORK, Book, Next, checkpoints_there, choose_next, due_steps
from ray_jobs.validation.grids import draw_grid, draw_samples, folder_of
from ray_jobs.validation.pairs import HeldOut

log = logging.getLogger(__name__)
ENDED = f"{WORK}/ended"
"""Made when training has ended: the last checkpoint is there."""
POLL_S = 0.5


class Orphaned(Exception):
    """Nobody waits for this validator any more."""


class Validator:
    """Judges the checkpoints of one run folder until training has ended and the last one is done."""

    def __init__(self, run_dir: Path, *, wanted: Callable[[], bool] = lambda: True) -> None:
        """``wanted`` turns False when whoever started this is gone."""
        self.run_dir, self.wanted = run_dir, wanted
        self.job = load_config(TrainJob, run_dir / "config.yaml", [])
        self.section = self.job.validation
        self.held_out = HeldOut.load(run_dir) if self.section.paths else None
        self.book = Book(run_dir, setup_of(self.job, self.held_out))
        self.device = device_for(self.section.gpus, torch.cuda.device_count(), on_ray=self.job.cluster.num_workers > 0)
        self.bench: Bench | None = None
        self.failed: set[int] = set()

    def run(self) -> None:
        """Work until there is nothing left; returns early when nobody wants it any more."""
        try:
            with alone(self.run_dir, self._check_wanted):
                best.mend(self.run_dir)
                while True:
                    ended = (self.run_dir / ENDED).exists()  # asked before looking, or the last one could be missed
                    there = checkpoints_there(self.run_dir)
                    what = self.next(there)
                    self._leave_out(what)
                    if what.step is not None:
                        self._try(what.step, there.get(what.step, "start"))
                    elif ended:
                        return
                    else:
                        self._tell(None, "waiting", 0, 0)
                        time.sleep(POLL_S)
                    self._check_wanted()
        except Orphaned:
            log.info("training is gone, so validation ends")
        finally:
            (self.run_dir / NOW).unlink(missing_ok=True)

    def next(self, there: dict[int, str]) -> Next:
        loop = self.job.loop
        due = due_steps(
            max(there, default=0),
            checkpoint_every=loop.checkpoint_every,
            every=self.section.every,
            last=loop.max_steps,
        )
        return choose_next(due, set(there), self.book.settled(there) | self.failed)

    def _leave_out(self, what: Next) -> None:
        for steps, why in ((what.deleted, "deleted before their turn came"), (what.overtaken, "a newer one was there")):
            if steps:
                self.book.append(max(steps), left_out=steps, why=why)

    def _try(self, step: int, weights: str) -> None:
        try:
            self._validate(step, weights)
        except Orphaned:
            raise
        except Exception as error:  # whatever model, disk or data may throw: training must not suffer from it
            self.failed.add(step)
            if step and step not in checkpoints_there(self.run_dir):
                self.book.append(step, left_out=[step], why="deleted while it was read")
                return
            log.exception("validation of update %d failed", step)
            self.book.append(step, failed=f"{type(error).__name__}: {error}".splitlines()[0])

    def _validate(self, step: int, weights: str) -> None:
        self._tell(step, "loading", 0, 0)
        if self.bench is None:
            self.bench = Bench(self.job, self.held_out, self.device)
        bench = self.bench
        if step:
            bench.put_in(self.run_dir / "checkpoints" / f"step-{step:08d}")
        found = bench.measure(lambda pairs: self._tell(step, "measuring", pairs, bench.pairs))
        row = {PREFIX + name: value for name, value in found.items()}
        chosen, setup, model = self.section.keep_best, self.book.setup, self.run_dir / WORK / "model"
        better = step > 0 and best.is_best(self.run_dir, chosen, setup, row, self.book.rows())
        if better or self.section.prompts:
            bench.export(model, step, best.provenance_of(chosen, setup, step, row) if better else {})
        images = {"grid": self._draw(model, step)} if self.section.prompts else {}
        if better:
            best.keep(self.run_dir, model)
        shutil.rmtree(model, ignore_errors=True)
        if (kept := best.picked(self.run_dir)) is not None:
            row |= {PREFIX + "best": kept["value"], PREFIX + "best_step": kept["step"]}
        self.book.append(step, weights=weights, **row, **images)

    def _draw(self, model: Path, step: int) -> str:
        self._tell(step, "drawing", 0, len(self.section.prompts))
        section = self.section
        folder, base = self.run_dir / folder_of(step), self.job.family.source
        draw_samples(model, base, folder, section.prompts, section.seed, section.sampler, str(self.device))
        drawn = [row["step"] for row in self.book.rows() if "grid" in row and row["step"] < step]
        previous = max((s for s in drawn if (self.run_dir / folder_of(s)).is_dir()), default=None)
        return draw_grid(self.run_dir, step, previous, section.prompts)

    def _tell(self, step: int | None, doing: str, done: int, of: int) -> None:
        """Leave what is being done now for whoever waits or asks; the moment to notice that nobody does."""
        replace_json(self.run_dir / NOW, {"step": step, "doing": doing, "done": done, "of": of})
        self._check_wanted()

    def _check_wanted(self) -> None:
        if not self.wanted():
            raise Orphaned


def device_for(asked: float | None, there: int, *, on_ray: bool) -> torch.device:
    """Where to validate, of ``there`` visible GPUs. A training without Ray is on the first one, which is only shared
    when that is asked for: a training that finds no memory left would end."""
    if on_ray:
        return torch.device("cuda" if there else "cpu")
    if asked == 0 or there == 0 or (asked is None and there == 1):
        return torch.device("cpu")
    return torch.device("cuda", 1 if there > 1 else 0)


@contextmanager
def alone(run_dir: Path, check: Callable[[], None]) -> Iterator[None]:
    """Wait until no other validator works on the run: one whose training was killed notices it a little later."""
    (run_dir / LOCK).parent.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(f"{os.getpid()}\n")
                file.flush()
                break
            except BlockingIOError:
                check()
                time.sleep(POLL_S)
        yield
