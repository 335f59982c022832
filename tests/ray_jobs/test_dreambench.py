import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.dreambench import subject_prompts
from eval.models import load_pipeline
from ray_jobs.dreambench import DreamBenchJob, chosen_prompts, main, plan_rows, run, scores_table, setting_of
from tests.eval.tiny_scorers import tiny_scorers
from tests.tiny_ip_adapter import make_tiny_ip_adapter
from tests.tiny_models import make_tiny_sd

PHOTOS = Path(__file__).parents[1] / "assets" / "dreambench"
CONFIG = Path(__file__).parents[2] / "tune_configs" / "compare" / "dreambench.yaml"


def test_the_setting_is_said_once():
    assert setting_of(DreamBenchJob()) == "original"
    assert setting_of(DreamBenchJob.model_validate({"draw": None, "setting": "kosmosg"})) == "kosmosg"
    for wrong in ({"draw": None}, {"draw": {"setting": "kosmosg"}, "setting": "original"}):
        with pytest.raises(ValueError, match="give original or kosmosg, once"):
            setting_of(DreamBenchJob.model_validate(wrong))


def test_a_dry_run_tells_how_much_would_be_drawn(capsys):
    assert main(["--config", str(CONFIG), "--dry-run"]) == 0
    assert "750 of 30 subjects" in capsys.readouterr().out
    rows = dict(plan_rows(DreamBenchJob(subjects=["dog", "can"])))
    assert rows["images"] == "50 of 2 subjects"
    with pytest.raises(ValueError, match=r"subjects: wolf are none of DreamBench's; allowed: backpack"):
        chosen_prompts(DreamBenchJob(subjects=["wolf"]))


@pytest.mark.ray
@pytest.mark.slow
def test_subjects_are_drawn_and_scored_on_the_cluster(tmp_path):
    model = make_tiny_sd(tmp_path / "model")
    adapter, encoder = make_tiny_ip_adapter(tmp_path, load_pipeline(model).unet)
    clip_t = next(scorer for scorer in tiny_scorers(tmp_path / "scorers") if scorer["kind"] == "clip_t")
    job = DreamBenchJob.model_validate(
        {
            "out": str(tmp_path / "out"),
            "references": str(PHOTOS),
            "subjects": ["can", "teapot"],
            "draw": {
                "model": str(model), "adapter": str(adapter), "image_encoder": str(encoder), "setting": "kosmosg",
                "num_inference_steps": 1, "dtype": "float32", "batch_size": 25,
            },
            "scorers": [clip_t, clip_t | {"kind": "clip_i"}],
            "cpus_per_task": 0.5,
        }
    )  # fmt: skip
    scores = run(job, Console(quiet=True))
    assert {row.subject: (row.images, row.references) for row in scores.subjects} == {"can": (25, 1), "teapot": (25, 1)}
    kept = json.loads((tmp_path / "out" / "dreambench.json").read_text())
    assert kept["means"] == pytest.approx(scores.means)
    assert scores_table(scores).row_count == 1
    file = tmp_path / "out" / "images" / "can" / f"{subject_prompts()['can'][0]}.png"
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(file)
    again = run(job, Console(quiet=True))
    assert again.means["clip_i"] != scores.means["clip_i"]
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"can: .* is broken"):
        run(job, Console(quiet=True))
