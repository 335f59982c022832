import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.dreambench import subject_prompts
from eval.models import load_pipeline
from ray_jobs.dreambench import DreamBenchJob, chosen_prompts, main, plan_rows, run, scores_table, setting_of
from ray_jobs.evaluate import main as evaluate
from ray_jobs.train import main as train
from tests.eval.tiny_scorers import tiny_scorers
from tests.tiny_data import make_pairs
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """What `palate train` leaves of PatchDPO's preset on a tiny model, and what it was trained from."""
    folder = tmp_path_factory.mktemp("patchdpo")
    model = make_tiny_sd(folder / "sd")
    adapter, encoder = make_tiny_ip_adapter(folder, load_pipeline(model).unet)
    given = {
        "family.model": model, "policy.ip_adapter.model": adapter, "policy.ip_adapter.image_encoder": encoder,
        "data.paths": f"[{make_pairs(folder / 'pairs', 24, grid=8)}]", "data.resolution": 16, "data.min_side": 16,
        "optim.lr": 1e-2, "loop.max_steps": 2, "loop.global_batch_size": 4, "loop.worker_batch_size": 2,
        "loop.precision": "fp32", "cluster.num_workers": 0, "tracking.enabled": "false", "run.storage": folder / "runs",
    }  # fmt: skip
    preset = CONFIG.parents[1] / "train" / "sd15_patchdpo_ip.yaml"
    assert train(["--config", str(preset), *(f"{name}={value}" for name, value in given.items())]) == 0
    exported = folder / "runs" / "sd15_patchdpo_ip" / "model"
    return {"folder": folder, "model": model, "adapter": adapter, "encoder": encoder, "exported": exported}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("setting", ["original", "kosmosg"])
def test_an_adapter_out_of_training_is_benchmarked_and_compared_with_what_it_was_trained_from(trained, setting):
    scorers, out = trained["folder"] / f"scorers-{setting}", trained["folder"] / setting
    clip_t = next(scorer for scorer in tiny_scorers(scorers) if scorer["kind"] == "clip_t")
    judges = json.dumps([clip_t | {"kind": "clip_i"}, clip_t])
    shared = [f"scorers={judges}"]
    bench = [
        f"draw.model={trained['exported']}", f"draw.setting={setting}", f"references={PHOTOS}", "subjects=[can,teapot]",
        "draw.dtype=float32", "draw.num_inference_steps=1", "draw.batch_size=25", "cpus_per_task=0.5",
        "gpus_per_task=0", f"out={out / 'bench'}",
    ]  # fmt: skip
    assert main(["--config", str(CONFIG), *bench, *shared]) == 0
    scores = json.loads((out / "bench" / "dreambench.json").read_text())
    photos = {"original": [3, 1], "kosmosg": [1, 1]}[setting]
    assert [(row["images"], row["references"]) for row in scores["subjects"]] == [(25, count) for count in photos]

    prompts = trained["folder"] / "prompts.jsonl"
    lines = [{"prompt": text, "subject": name} for name in ("can", "dog", "teapot") for text in subject_prompts()[name]]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    plan = [
        f"models.base={trained['model']}", f"models.patchdpo={trained['exported']}",
        f"adapters.base.path={trained['adapter']}", f"adapters.base.image_encoder={trained['encoder']}",
        f"photos.references={PHOTOS}", f"photos.setting={setting}", f"prompts=[{prompts}]", "sampler.dtype=float32",
        "sampler.num_inference_steps=1", "tasks.cpus_per_task=0.5", "tasks.gpus_per_task=0", "tracking.enabled=false",
        f"out={out / 'compared'}",
    ]  # fmt: skip
    assert evaluate(["--config", str(CONFIG.parent / "adapters.yaml"), *plan, *shared]) == 0
    facts = json.loads((out / "compared" / "report.json").read_text())
    first = facts["differences"][0]
    assert (facts["unit"], first["prompts"], first["images"]) == ("subject", 3, 75)
    assert facts["protocol"]["photos"] == setting
    assert first["delta"] != 0, "training has changed what is drawn"
