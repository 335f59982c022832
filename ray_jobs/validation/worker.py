"""Where the validator runs: a process on this machine, or a Ray actor."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.cluster import ClusterSection, start_ray
from ray_jobs.validation.section import ValidationSection

STARTS = 4
"""How often a validator that dies is started again, the first time included."""
LOG = "validation/log.txt"


class Worker(Protocol):
    """A running validator."""

    def poll(self) -> str | None:
        """None while it runs; afterwards why it died, empty when it has done its work."""
        ...

    def stop(self) -> None: ...


class ProcessWorker:
    """A process of low priority; Ctrl-C in the terminal does not reach it, and it ends when this process is gone."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.starts = run_dir, 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        command = [sys.executable, "-m", "ray_jobs.validation", str(self.run_dir), str(os.getpid())]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with (self.run_dir / LOG).open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PYTHONPATH": path}
            )

    def poll(self) -> str | None:
        code = self.process.poll()
        if code is None or code == 0:
            return None if code is None else ""
        if self.starts < STARTS:
            self._start()
            return None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the validator died {self.starts} times, last by {how}; its log is {self.run_dir / LOG}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class ActorWorker:
    """An actor on the cluster; Ray starts it again where there is room when it dies."""

    def __init__(self, run_dir: Path, section: ValidationSection, cluster: ClusterSection) -> None:
        import ray

        start_ray()
        check_room(section, cluster)
        self.actor: Any = (
            ray.remote(ValidationActor)
            .options(  # pyright: ignore[reportAttributeAccessIssue]
                num_cpus=section.cpus,
                num_gpus=spare_gpus(section, cluster),
                max_restarts=STARTS - 1,
                max_task_retries=STARTS - 1,
            )
            .remote()
        )
        self.done: Any = self.actor.run.remote(str(run_dir))

    def poll(self) -> str | None:
        import ray

        ready, _ = ray.wait([self.done], timeout=0)
        if not ready:
            return None
        try:
            ray.get(self.done)
        except Exception as error:  # of the actor, its node or its start
            return f"the validation actor ended with {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        return ""

    def stop(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self.actor)


class ValidationActor:
    """What runs on the cluster."""

    def run(self, run_dir: str) -> None:
        from ray_jobs.validation.validator import Validator

        Validator(Path(run_dir)).run()


def spare_gpus(section: ValidationSection, cluster: ClusterSection) -> float:
    """GPUs of the actor."""
    import ray

    if section.gpus is not None:
        return section.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) > cluster.num_workers else 0.0


def check_room(section: ValidationSection, cluster: ClusterSection) -> None:
    """ValueError when the actor would leave training too few CPUs on this machine; another cluster may grow."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources().get("CPU", 0)
    training = cluster.num_workers * cluster.cpus_per_worker + cluster.cpus_per_read
    if training + section.cpus > there:
        raise ValueError(
            f"training asks for {training:g} CPUs and validation for {section.cpus:g}, the cluster has {there:g}; "
            "lower validation.cpus, cluster.num_workers, cluster.cpus_per_worker or cluster.cpus_per_read"
        )
