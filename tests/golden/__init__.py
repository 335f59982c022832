"""Committed trajectories: what every debug config of tune_configs/debug logs, update by update.

python -m tests.golden [NAME ...]     records them anew; the diff of the JSON files is what has changed
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from dpo_core.recipe import TrainSection
from ray_jobs.config import load_config
from ray_jobs.training.job import TrainJob
from tests.tiny_families import TINY
from tests.train_runs import rows, run

FOLDER = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "tune_configs" / "debug"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
LEFT_OUT = {"step", "train/pairs", "data/quarantined", "train/chosen_error_rises", "train/skipped_updates"}


def record(name: str, scratch: Path) -> dict[str, Any]:
    """Run one debug config in ``scratch``: its logged rows, and sums over the trained weights."""
    job = load_config(TrainJob, CONFIGS / f"{name}.yaml", [])
    config = TrainSection.model_validate(job.model_dump(include=set(TrainSection.model_fields)))
    if config.family.model != "embedded":
        model = TINY[config.family.kind](scratch / "model")
        config = config.model_copy(update={"family": config.family.model_copy(update={"model": str(model)})})
    weights = run(config, scratch / "run")
    values = torch.cat([weight.double().flatten() for _, weight in sorted(weights.items())])
    logged = [{key: value for key, value in row.items() if key not in LEFT_OUT} for row in rows(scratch / "run")]
    return {"rows": logged, "weights": {"count": len(values), "abs_sum": values.abs().sum().item()}}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path_of(name).write_text(json.dumps(record(name, Path(scratch)), indent=1) + "\n")
