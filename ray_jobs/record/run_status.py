"""How a training run stands, read from its folder alone."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dpo_core.checkpoint import MANIFEST
from dpo_core.data.quarantine import counts_by_reason, read_quarantine
from dpo_core.metrics import read_complete_rows
from dpo_core.stopping import stop_asked
from ray_jobs.record.readings import SHOWN, duration, seconds_per_update
from ray_jobs.record.runlog import ended_by
from ray_jobs.training.alone import is_trained_in
from ray_jobs.validation.told import validation_facts

LATE = 5
"""A run that has been silent for this many times its usual interval, and a minute, is not running any more."""


@dataclass(frozen=True)
class RunStatus:
    """A run folder, read once."""

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    now: float

    @classmethod
    def read(cls, folder: str | Path) -> "RunStatus":
        """Raises ValueError when ``folder`` is not the folder of a training run."""
        folder = Path(folder)
        file = folder / "config.yaml"
        if not file.is_file():
            raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml; give RUN as runs/<run.name>")
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "loop" not in config:
            raise ValueError(f"{folder} is not the folder of a training run: its config.yaml has no section loop")
        return cls(folder, config, read_complete_rows(folder / "metrics.jsonl"), time.time())

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def total(self) -> int:
        return self.config["loop"]["max_steps"]

    @cached_property
    def seconds_per_update(self) -> float | None:
        return seconds_per_update(self.rows)

    @property
    def state(self) -> str:
        """finished, failed, stopping, starting, running or stopped."""
        if self.step >= self.total and (self.folder / "model" / "provenance.json").exists():
            return "finished"
        trained = is_trained_in(self.folder)
        if not trained and ended_by(self.folder):
            return "failed"
        if trained is not False and stop_asked(self.folder):
            return "stopping"
        if trained is not None:
            return ("running" if self.rows else "starting") if trained else "stopped"
        started = self.rows[-1]["time"] if self.rows else (self.folder / "config.yaml").stat().st_mtime
        usual = (self.seconds_per_update or 60.0) * self.config["loop"]["log_every"]
        if self.now - started > max(60.0, LATE * usual):
            return "stopped"
        return "running" if self.rows else "starting"

    @property
    def checkpoints(self) -> list[int]:
        """Updates of the complete checkpoints."""
        found = sorted((self.folder / "checkpoints").glob(f"step-????????/{MANIFEST}"))
        return [int(path.parent.name.removeprefix("step-")) for path in found]

    def facts(self) -> dict[str, str]:
        """What there is to say, in words."""
        config, last = self.config, self.rows[-1] if self.rows else {}
        facts = {
            "state": self.state,
            **({"error": ended_by(self.folder)} if self.state == "failed" else {}),
            "updates": f"{self.step:,} of {self.total:,} ({100 * self.step / self.total:.0f} %)",
            "trains": f"{config['objective']['kind']}, {config['policy']['method']}, {config['family']['model']}",
        }
        seconds = self.seconds_per_update
        if seconds is not None:
            pairs = config["loop"]["global_batch_size"]
            facts["speed"] = f"{pairs / max(seconds, 1e-9):.2f} pairs/s, {seconds:.2f} s per update"
            if self.state == "running":
                facts["ends in about"] = duration(seconds * (self.total - self.step))
        facts |= {name: f"{last[key]:.4g}" for key, name in SHOWN.items() if key in last}
        if last.get("train/chosen_error_rises"):
            facts["alarm"] = "the error of the chosen images rises: the margin grows by unlearning"
        if last.get("train/skipped_updates"):
            facts["skipped updates"] = f"{last['train/skipped_updates']:.0f} (their gradient was not finite)"
        facts |= validation_facts(self.folder)
        facts["checkpoints"] = ", ".join(f"{step:,}" for step in self.checkpoints) or "none yet"
        file = self.folder / "quarantine.parquet"
        if file.exists():
            reasons = counts_by_reason(read_quarantine(file))
            facts["quarantine"] = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "empty"
        if self.rows:
            facts["last row"] = f"{duration(self.now - last['time'])} ago"
        return facts
