import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval import evaluation
from eval.evaluation import evaluate, plan_work
from eval.plan import ComparisonPlan
from eval.prompts import load_prompts
from tests.eval.tiny_scorers import tiny_scorers
from tests.tiny_models import make_tiny_sd

SAMPLER = {"scheduler": "ddim", "num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 8}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> ComparisonPlan:
    folder = tmp_path_factory.mktemp("evaluation")
    models = {name: str(make_tiny_sd(folder / name, seed=i)) for i, name in enumerate(("base", "sft", "dpo"))}
    (folder / "seen.txt").write_text("a red circle\na blue square above a red circle\na red circle\n" * 4)
    return ComparisonPlan.model_validate(
        {
            "models": models,
            "control": "sft",
            "prompts": ["shapes_heldout", str(folder / "seen.txt")],
            "limit": 12,
            "sampler": SAMPLER,
            "scorers": tiny_scorers(folder),
            "training_captions": [str(folder / "seen.txt")],
        }
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def comparison(plan, out):
    return evaluate(plan, out)


def test_three_models_on_two_prompt_sets_with_every_tiny_scorer(plan, comparison):
    primary = [metric.key for metric in comparison.metrics if metric.primary]
    assert len(primary) == 5
    assert comparison.sets == ["shapes_heldout", "seen"]
    contrasts = {(d.model, d.against, d.metric, d.prompt_set) for d in comparison.differences}
    for key in primary:
        for label in comparison.sets:
            assert {(a, b, key, label) for a, b in (("sft", "base"), ("dpo", "base"), ("dpo", "sft"))} <= contrasts
    assert len([d for d in comparison.differences if d.p_adjusted is not None]) == 5 * 2 * 3
    assert len(comparison.ratings) == 5 * 2 * 3
    assert {row.metric for row in comparison.agreements} <= set(primary)
    assert len(comparison.protocol["hash"]) == 16
    (kept, seen) = comparison.overlaps
    assert (kept.prompt_set, kept.shared, seen.prompt_set, seen.shared) == ("shapes_heldout", 0, "seen", 12)


def test_equal_texts_of_a_set_get_noise_of_their_own(plan, comparison, out):
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    twins = [row for row in rows if row["model"] == "base" and row["prompt"] == "a red circle"]
    assert len(twins) == 8
    pictures = {np.asarray(Image.open(out / row["file"])).tobytes() for row in twins}
    assert len(pictures) == 8
    assert all(row["blank"] is False for row in rows)


def test_what_is_there_is_neither_drawn_nor_scored_again(plan, comparison, out, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(evaluation, "pipeline_of", never)
    monkeypatch.setattr(evaluation, "loaded", never)
    assert evaluate(plan, out).numbers() == comparison.numbers()


def test_a_changed_scorer_is_asked_again_and_the_others_are_not(plan, comparison, out, monkeypatch):
    asked = []
    load = evaluation.loaded
    monkeypatch.setattr(evaluation, "loaded", lambda scorer, device: asked.append(scorer.kind) or load(scorer, device))
    changed = [s.model_copy(update={"prefix": "A photo depicts "}) if s.kind == "clip" else s for s in plan.scorers]
    again = evaluate(plan.model_copy(update={"scorers": changed}), out)
    assert set(asked) == {"clip"}
    assert again.protocol["hash"] != comparison.protocol["hash"]


def test_images_made_elsewhere_can_be_compared(plan, comparison, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    texts = load_prompts("shapes_heldout", 12)
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "prompts.txt").write_text("\n".join(texts))
    models = {"base": plan.models["base"], "other": str(folder)}
    found = evaluate(
        plan.model_copy(update={"models": models, "control": None, "prompts": ["shapes_heldout"]}), tmp_path
    )
    assert found.difference("other", "clip").prompts == 12
    assert found.blank == {"base": 0, "other": 12}
    assert found.weights["other"].startswith("images-")


def test_a_comparison_needs_two_models(plan):
    with pytest.raises(ValueError, match="a comparison needs two, given base"):
        plan_work(plan.model_copy(update={"models": {"base": "x"}, "control": None}))


def test_pieces_cover_the_work_once_model_by_model(plan):
    work = plan_work(plan)
    pieces = work.pieces(10)
    assert [row for piece in pieces for row in piece.rows] == [row for rows in work.rows.values() for row in rows]
    assert all(len({row["model"] for row in piece.rows}) == 1 for piece in pieces)
    assert max(len(piece.rows) for piece in pieces) == 10


KILLED = """
import json, sys
from eval.evaluation import evaluate
from eval.plan import ComparisonPlan
evaluate(ComparisonPlan.model_validate(json.loads(sys.argv[1])), sys.argv[2])
"""


def test_a_comparison_that_was_killed_goes_on_where_it_was(plan, comparison, tmp_path):
    slow = plan.model_copy(update={"sampler": plan.sampler.model_copy(update={"batch_size": 1})})
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, slow.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as process:
        end = time.monotonic() + 240
        while len(list(tmp_path.rglob("*.png"))) < 5 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert 5 <= len(there) < 3 * 24
    assert not (tmp_path / "scores.parquet").exists()
    found = evaluate(slow, tmp_path)
    assert all(file.stat().st_mtime_ns == when for file, when in there.items())
    assert len(list((tmp_path / "images").rglob("*.png"))) == 3 * 24
    assert found.difference("dpo", "clip").delta == pytest.approx(comparison.difference("dpo", "clip").delta, abs=0.05)


def test_weights_of_a_scorer_that_are_not_there_are_told_before_anything_is_drawn(plan, tmp_path):
    scorer = {"kind": "aesthetic", "name": "looks", "clip": "/no/such/clip"}
    other = ComparisonPlan.model_validate(plan.model_dump() | {"scorers": [*plan.model_dump()["scorers"], scorer]})
    with pytest.raises(ValueError, match=r"scorer looks: cannot load .*: no folder '/no/such/clip'"):
        evaluate(other, tmp_path)
    assert not (tmp_path / "images").exists()


def test_prompts_that_a_scorer_cannot_judge_are_refused_before_anything_is_drawn(plan):
    other = ComparisonPlan.model_validate(plan.model_dump() | {"prompts": ["shapes_heldout", "drawbench"]})
    with pytest.raises(ValueError, match=r"scorer shapes is not for the prompts of drawbench: cannot check"):
        plan_work(other)
