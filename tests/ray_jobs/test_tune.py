import json
from pathlib import Path

import pytest
import yaml

from tests.ray_jobs.jobs import final_weights, palate, write_job
from tests.train_runs import same


@pytest.mark.slow
@pytest.mark.ray
def test_trials_one_after_another_share_a_process_and_train_what_a_run_alone_trains(tmp_path, tiny_sd, tiny_pairs):
    job = yaml.safe_load(write_job(tmp_path, tiny_sd, tiny_pairs, name="alone", steps=3).read_text())
    train = job | {"run": job["run"] | {"name": "sweep"}}
    sweep = {
        "train": train,
        "search": {"space": {"objective.beta": {"kind": "grid", "values": [100.0, 500.0]}}, "max_concurrent": 1},
        "judge": {"limit": 2, "sampler": {"num_inference_steps": 1}},
    }
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(sweep))
    done = palate("tune", "--config", config)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "sweep"
    assert len(pids(folder / "tune")) == 1
    assert palate("train", "--config", tmp_path / "alone.yaml", "objective.beta=100.0").returncode == 0
    (trial,) = [path for path in folder.iterdir() if path.name.endswith("100")]
    assert same(final_weights(trial), final_weights(tmp_path / "runs" / "alone"))


def pids(folder: Path) -> set[int]:
    """The processes that Tune's trials ran in."""
    results = [json.loads(path.read_text().splitlines()[-1]) for path in folder.glob("*/result.json")]
    assert len(results) == 2
    return {result["pid"] for result in results}
