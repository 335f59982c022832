import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from rich.console import Console

from dpo_core.data.sources.shapes import captions
from eval.evaluation import Piece, draw_and_score
from eval.generate import SamplerSection, generate_to_folder, make_missing, plan_images
from eval.models import load_pipeline
from eval.prompts import load_prompts
from eval.scorers.aesthetic import Aesthetic
from eval.scorers.shapes import Shapes
from eval.sources import Source
from eval.verdict import cautions, verdicts
from ray_jobs.comparison import pool
from ray_jobs.comparison.outcome import results_tables
from ray_jobs.comparison.pool import dealt
from ray_jobs.config import load_config, save_config
from ray_jobs.evaluate import EvaluateJob, compare, locate, main, report
from ray_jobs.record.tracking import TrackingSection
from tests.tiny_models import make_tiny_sd

SAMPLER = SamplerSection(num_inference_steps=1, guidance_scale=1.0, batch_size=4)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> EvaluateJob:
    folder = tmp_path_factory.mktemp("evaluate")
    models = {name: str(make_tiny_sd(folder / name, seed=seed)) for seed, name in enumerate(("base", "dpo"))}
    return EvaluateJob.model_validate(
        {
            "models": models,
            "limit": 6,
            "images_per_prompt": 2,
            "sampler": SAMPLER.model_dump(),
            "scorers": [Shapes()],
            "out": str(folder / "out"),
            "tasks": {"images_per_task": 5, "cpus_per_task": 0.5, "workers": 1},
            "tracking": TrackingSection(enabled=False),
        }
    )


@pytest.fixture(scope="module")
def comparison(job):
    yield compare(job, Console(quiet=True))
    ray.shutdown()


@pytest.mark.ray
def test_a_comparison_leaves_every_image_and_score(job, comparison):
    manifest = pq.read_table(Path(job.out) / "manifest.parquet").to_pylist()
    scores = pq.read_table(Path(job.out) / "scores.parquet").to_pylist()
    assert len(manifest) == 2 * 6 * 2
    assert all((Path(job.out) / row["file"]).is_file() for row in manifest)
    assert len(scores) == len(manifest) * len(Shapes.columns)
    assert comparison.difference("dpo").prompts == 6
    assert comparison.difference("dpo").images == 12
    assert len(set(comparison.weights.values())) == 2


@pytest.mark.ray
def test_images_of_many_tasks_equal_those_of_one_process(job, comparison, tmp_path):
    prompts = job.load_prompts()
    manifest = generate_to_folder(
        job.models["dpo"],
        [prompt.text for prompt in prompts],
        job.seeds,
        tmp_path,
        SAMPLER,
        model="dpo",
        indices=[prompt.index for prompt in prompts],
    )
    for row in pq.read_table(manifest).to_pylist():
        files = tmp_path / row["file"], Path(job.out) / row["file"]
        alone, spread = (np.asarray(Image.open(file)).astype(int) for file in files)
        assert np.abs(alone - spread).max() <= 1


@pytest.mark.ray
def test_the_same_comparison_again_needs_no_cluster_and_gives_the_same_numbers(job, comparison, monkeypatch):
    monkeypatch.setattr(pool, "start_ray", lambda: pytest.fail("a cluster was started"))
    before = {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*.png")}
    assert compare(job, Console(quiet=True)).numbers() == comparison.numbers()
    assert {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*.png")} == before


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_scorer_refuses_arrives_as_its_own_error(job, comparison, tmp_path):
    changes = {"scorers": [Shapes(), Aesthetic(clip="/no/such/clip")], "out": str(tmp_path / "out")}
    bad = job.model_copy(update=changes | {"tasks": job.tasks.model_copy(update={"workers": 2})})
    with pytest.raises(ValueError, match=r"scorer aesthetic: cannot load .*'/no/such/clip'") as error:
        compare(bad, Console(quiet=True))
    assert "Traceback" not in str(error.value)


@pytest.mark.ray
def test_the_console_warns_as_the_report_does(job, comparison, tmp_path, capsys):
    save_config(job, tmp_path / "again.yaml")
    assert main(["--config", str(tmp_path / "again.yaml")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "shapes_heldout, 6 prompts: differences with 95 % intervals" in shown
    assert verdicts(comparison)[0] in shown
    assert cautions(comparison)[-1] in shown


@pytest.mark.ray
def test_the_report_tells_how_to_get_it_again(job, comparison):
    page = report(job, comparison, title="Tiny models")
    text = page.read_text("utf-8")
    assert "Tiny models" in text
    assert f"palate evaluate --config {job.out}/config.yaml" in text
    facts = json.loads((page.parent / "report.json").read_text())
    assert facts["reproduce"]["config"] == (page.parent / "config.yaml").read_text()
    row = json.loads((page.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["eval/shapes/correct/dpo/win_rate"] == comparison.difference("dpo").win_rate
    assert [table.row_count for table in results_tables(comparison)] == [1]


def test_a_task_does_not_load_the_model_when_all_images_are_there(job, tmp_path):
    rows = plan_images("base", "abc", ["a red circle"], [0], SAMPLER)
    make_missing(load_pipeline(job.models["base"]), rows, SAMPLER, tmp_path)
    scores = draw_and_score(Piece(Source("no/such/model"), SAMPLER, rows), job.scorers, tmp_path, "cpu")
    assert {row["column"] for row in scores} == set(Shapes.columns)


def test_a_single_model_is_not_a_comparison(job):
    with pytest.raises(ValueError, match="models: a comparison needs two, given base"):
        compare(job.model_copy(update={"models": {"base": job.models["base"]}}))


def test_the_embedded_model_and_the_base_of_a_lora_are_found(tmp_path):
    embedded = locate("embedded")
    assert Path(embedded.folder, "model_index.json").is_file()
    assert embedded.base is None
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "provenance.json").write_text('{"base_model": "embedded"}')
    assert locate(str(tmp_path)) == Source(str(tmp_path), embedded.folder)
    assert locate("owner/name") == Source("owner/name")


@pytest.mark.parametrize(
    ("config", "models"), [("shapes", 3), ("partiprompts", 3), ("sdxl", 3), ("geneval", 2), ("adapters", 2)]
)
def test_every_comparison_that_ships_is_a_valid_plan(config, models):
    job = load_config(EvaluateJob, Path(__file__).parents[2] / "tune_configs" / "compare" / f"{config}.yaml", [])
    assert len(job.models) == models


def test_the_seen_captions_are_those_that_may_be_trained_on():
    assert load_prompts("shapes_seen") == captions("train", singles=False)


def test_neighbouring_pieces_go_to_the_same_worker():
    pieces: list[Any] = list(range(7))
    assert dealt(pieces, 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert dealt(pieces[:2], 2) == [[0], [1]]


def test_a_dry_run_tells_how_much_would_be_drawn(capsys):
    root = Path(__file__).parents[2]
    assert (
        main(
            [
                "--config",
                str(root / "tune_configs/compare/partiprompts.yaml"),
                "--dry-run",
                "limit=100",
                "prompts=partiprompts",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "100 of partiprompts" in shown
    assert "300 in all" in shown
