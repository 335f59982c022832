"""A Ray cluster of several nodes on this machine, and runs on it that can be watched and broken."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_core.context import LocalContext
from dpo_core.metrics import read_complete_rows
from tests.fault_table import Figures
from tests.ray_jobs.jobs import ROOT

STORE = 100 << 20


@dataclass
class Nodes:
    """The nodes beside the head, which has no CPU: every worker runs on one of these."""

    cluster: Any
    environment: dict[str, str]
    scratch: str
    there: list[Any] = field(default_factory=list)

    def add(self, cpus: int = 2) -> None:
        self.there.append(self.cluster.add_node(num_cpus=cpus, object_store_memory=STORE))

    def lose(self, index: int) -> None:
        """As if the machine had been switched off."""
        self.cluster.remove_node(self.there.pop(index), allow_graceful=False)

    def announce_loss(self, index: int, seconds: int) -> None:
        """What a cloud's notice of preemption becomes in Ray."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address,
                   "--node-id", self.there[index].node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
                   "--reason-message", "test", "--deadline-remaining-seconds", str(seconds)]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=120)


@contextmanager
def cluster_of(nodes: int) -> Iterator[Nodes]:
    """``nodes`` nodes of two CPUs and a head without any, found by nobody but those who know its address."""
    from ray.cluster_utils import Cluster

    scratch = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's socket paths must be short
    settings = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        made = Nodes(cluster, os.environ | {"RAY_ADDRESS": str(cluster.address)}, scratch)
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class Run:
    """``palate train`` as a process of its own."""

    folder: Path
    process: subprocess.Popen[str]
    said: Path

    def step(self) -> int:
        """The last update that is on record."""
        rows = read_complete_rows(self.folder / "metrics.jsonl")
        return rows[-1]["step"] if rows else 0

    def log(self) -> str:
        path = self.folder / "run.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, ready: Callable[[], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"the run has ended: {self.output()}"
            assert time.monotonic() < end, f"still waiting at update {self.step()}: {self.log()[-2000:]}"
            time.sleep(0.1)

    def wait_for_step(self, step: int, seconds: float = 240) -> None:
        self.wait_for(lambda: self.step() >= step, seconds)

    def starts(self) -> list[int]:
        """The updates that the run went on from, oldest first."""
        return [int(step) for step in re.findall(r"resumed at update (\d+)", self.log())]

    def recovered(self, figures: Figures, since: float, at_step: int, seconds: float = 240) -> None:
        """Wait until the run is further than ``at_step``, where it was broken at the time ``since``; note what that
        took."""
        before = len(self.starts())
        self.wait_for_step(at_step + 1, seconds)
        row = next(row for row in read_complete_rows(self.folder / "metrics.jsonl") if row["step"] > at_step)
        figures.seconds = row["time"] - since
        again = self.starts()[before:]
        figures.lost_updates = at_step - again[-1] if again else None

    def output(self) -> str:
        return self.said.read_text()[-3000:]

    def end(self, seconds: float = 240) -> str:
        """Wait for the end; what the run has said. Fails unless it ended well."""
        assert self.process.wait(seconds) == 0, self.output()
        return self.said.read_text()


@contextmanager
def start(config: Path, *overrides: str, env: dict[str, str] | None = None) -> Iterator[Run]:
    """Start ``palate train``; whatever is left of it at the end of the block is killed."""
    said = config.with_suffix(f".{time.monotonic_ns()}.out")
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(config), *overrides]
    with said.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    try:
        yield Run(config.parent / "runs" / config.stem, process, said)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


class Until(LocalContext):
    """One process without Ray that ends after some updates."""

    def __init__(self, folder: Path, updates: int) -> None:
        super().__init__(folder, "cpu")
        self.left = updates

    def request(self):
        self.left -= 1
        return "stop" if self.left == 0 else "nothing"
