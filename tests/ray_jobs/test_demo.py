"""The demo, with little of everything: the stages in their order, and what becomes of the folder."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ray_jobs.config import load_config
from ray_jobs.demo import CONFIG, DONE, KEPT, DemoJob, begin, main, plan_rows, run_demo

RUNS = ("train", "control")
LITTLE = [
    "pairs.recipe.count=24",
    "pairs.recipe.mix={samples: 0, drawing: 0, near_miss: 1, spoiled: 1}",
    "pairs.cluster.num_workers=0",
    "train.cluster.num_workers=0",
    *(f"{run}.loop.{field}=2" for run in RUNS for field in ("max_steps", "global_batch_size", "worker_batch_size")),
    *(f"{run}.loop.log_every=1" for run in RUNS),
    "evaluate.limit=3",
    "evaluate.images_per_prompt=1",
    "evaluate.sampler.num_inference_steps=2",
    "judge.limit=2",
    "judge.sampler.num_inference_steps=2",
    "sweep_steps=1",
]


def little(out: Path, *overrides: str) -> DemoJob:
    return load_config(DemoJob, CONFIG, [f"out={out}", *LITTLE, *overrides])


def test_a_stopped_demo_goes_on_and_a_finished_or_changed_one_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert begin(little(out), out) == ""
    (out / "pairs").mkdir()
    assert begin(little(out), out).startswith("going on")
    assert (out / "pairs").exists()
    assert begin(little(out, "sweep_steps=3"), out).startswith("replacing another demo")
    assert not (out / "pairs").exists()
    (out / DONE).touch()
    assert begin(little(out, "sweep_steps=3"), out).startswith("replacing the finished demo")
    assert not (out / DONE).exists()


def test_control_and_sweep_can_be_left_out(tmp_path: Path) -> None:
    assert ("stages", "pairs, prepare, train, evaluate, report") in plan_rows(
        little(tmp_path, "control=null", "search=null")
    )


def test_without_a_config_it_is_the_demo_that_make_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run"]) == 0
    alone = capsys.readouterr().out
    assert main(["--dry-run", "--config", str(CONFIG)]) == 0
    assert capsys.readouterr().out == alone


def test_files_that_no_demo_made_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files that no demo made"):
        run_demo(little(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / KEPT).exists()


@pytest.mark.ray
def test_the_demo_runs_every_stage_and_says_what_it_did(tmp_path: Path) -> None:
    said = io.StringIO()
    page = run_demo(little(tmp_path / "demo"), Console(file=said, width=200))
    lines = [line.split() for line in said.getvalue().splitlines()]
    stages = [words[0] for words in lines if words[2:3] == ["s"]]
    assert stages == ["pairs", "prepare", "train", "control", "evaluate", "tune", "report", "total"]
    text = page.read_text(encoding="utf-8")
    assert f"palate demo --config {tmp_path / 'demo' / KEPT}" in text
    assert load_config(DemoJob, tmp_path / "demo" / KEPT, []) == little(tmp_path / "demo")
    assert (tmp_path / "demo" / DONE).exists()
