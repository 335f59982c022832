"""`palate evaluate` as a user runs it: three models, two prompt sets, killed without warning, and typed again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from mlflow import MlflowClient

from tests.eval.tiny_scorers import tiny_scorers
from tests.tiny_models import make_tiny_sd

ROOT = Path(__file__).parents[2]
PROMPTS, MODELS = 12, ("base", "sft", "dpo")


def command(folder: Path, scorers: list[dict]) -> list[str]:
    models = {name: str(folder / name) for name in MODELS}
    return [
        *(sys.executable, "-m", "ray_jobs.evaluate", "--config", str(ROOT / "tune_configs/compare/shapes.yaml")),
        *(f"models={json.dumps(models)}", f"scorers={json.dumps(scorers)}", f"out={folder / 'out'}"),
        *(f"limit={PROMPTS}", "sampler.num_inference_steps=2", "sampler.batch_size=1", "training_captions=[]"),
        *("tasks.images_per_task=6", "tasks.workers=1", "register_as=tiny"),
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_with_a_whole_report(tmp_path):
    for seed, name in enumerate(MODELS):
        make_tiny_sd(tmp_path / name, seed=seed)
    words = command(tmp_path, tiny_scorers(tmp_path / "scorers"))
    out, environment = tmp_path / "out", os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True) as process:
        end = time.monotonic() + 200
        while len(list(out.rglob("*.png"))) < 20 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(3)  # Ray's processes end themselves when their driver is gone
    there = {file: file.stat().st_mtime_ns for file in [*out.rglob("*.png"), *out.rglob("parts/*.parquet")]}
    assert 20 <= len(there) < len(MODELS) * 2 * PROMPTS
    assert not (out / "report.html").exists()
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "their scores are there from before" in done.stdout
    assert all(file.stat().st_mtime_ns == when for file, when in there.items())
    assert len(list((out / "images").rglob("*.png"))) == len(MODELS) * 2 * PROMPTS
    facts = json.loads((out / "report.json").read_text())
    jsonschema.validate(facts, json.loads((out / "report.schema.json").read_text()))
    assert {d["prompt_set"] for d in facts["differences"]} == {"shapes_heldout", "shapes_seen"}
    assert {"shapes/correct", "clip", "clip_t", "aesthetic", "pickscore"} <= {d["metric"] for d in facts["differences"]}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    model = client.get_registered_model("tiny")
    head = [d for d in facts["differences"] if d["metric"] == "shapes/correct" and d["prompt_set"] == "shapes_heldout"]
    better = {d["model"] for d in head if d["against"] == "base" and d["shown"] and d["low"] > 0}
    assert ("champion" in model.aliases) == bool(better)
