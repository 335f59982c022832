import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dpo_core.data.batches import DataSection
from dpo_core.data.labelled import labelled_by
from dpo_core.data.schema import SCHEMA
from ray_jobs.pairing.downgrade import Downgrade
from ray_jobs.pairing.other_caption import OtherCaption
from ray_jobs.pairing.world import World
from ray_jobs.pairs import main, make_pairs
from ray_jobs.shards.job import shard_files
from tests.ray_jobs.pair_jobs import FAST, QUIET, REAL, ROOT, job, real, samples

pytestmark = pytest.mark.timeout(600)  # a cluster on a busy machine takes minutes to start


def test_the_scorer_that_labelled_stays_known_when_the_set_is_used_again(tmp_path):
    mix = {"samples": 0, "drawing": 0, "near_miss": 1, "spoiled": 1}
    record = make_pairs(job(tmp_path / "world", World.model_validate({"count": 8, "mix": mix})), QUIET)
    assert record.report == {"labelled_by": ["shapes/score"]}
    assert json.loads((tmp_path / "world" / "job.json").read_text())["report"] == record.report
    for name, paths in (("folder", tmp_path / "world"), ("file", tmp_path / "world" / "pairs-00000.parquet")):
        worse = Downgrade(data=DataSection(paths=[str(paths)], resolution=64))
        assert make_pairs(job(tmp_path / name, worse), QUIET).report == record.report
    assert labelled_by([str(REAL)]) == []


def test_a_killed_job_draws_only_what_is_missing(tmp_path, capsys):
    work = job(tmp_path / "out", samples(limit=6, judges=[{"column": "score"}]), shard_pairs=2)
    make_pairs(work, QUIET)
    files = [Path(file) for file in shard_files(tmp_path / "out")]
    whole = [file.read_bytes() for file in files]
    assert len(files) == 3
    os.remove(files[1])
    fields = json.loads((tmp_path / "out" / "job.json").read_text())
    (tmp_path / "out" / "job.json").write_text(json.dumps(fields | {"complete": False}))
    kept = [file.stat().st_mtime_ns for file in (files[0], files[2])]
    make_pairs(work, QUIET)
    assert [file.stat().st_mtime_ns for file in (files[0], files[2])] == kept
    assert [file.read_bytes() for file in files] == whole
    make_pairs(work)
    assert "nothing to do" in capsys.readouterr().out


def test_another_recipe_or_seed_in_the_same_folder_is_refused(tmp_path):
    make_pairs(job(tmp_path / "out", Downgrade(data=real())), QUIET)
    with pytest.raises(ValueError, match=r"seed 3 there, 4 here"):
        make_pairs(job(tmp_path / "out", Downgrade(data=real()), seed=4), QUIET)
    with pytest.raises(ValueError, match=r"recipe.kind downgrade there, other_caption here"):
        make_pairs(job(tmp_path / "out", OtherCaption(data=real())), QUIET)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.column=beauty"], "recipe.column: 'beauty' is not one of"),
        (["recipe.scorer.kind=dino", "recipe.column=dino"], "'dino' compares with reference images"),
        (["recipe.kind=samples", "recipe.prompts=nothing"], "unknown prompt set 'nothing'"),
        (
            ["recipe.kind=downgrade", f"recipe.data.paths=[{REAL}]", "recipe.data.flip=pair"],
            "data.flip=pair is a matter",
        ),
        (["recipe.kind=other_caption", "recipe.data.paths=[nowhere]"], "leads to no"),
    ],
)
def test_what_cannot_be_made_is_one_line(words, message, capsys, tmp_path):
    assert main([*words, f"out={tmp_path / 'out'}", "cluster.num_workers=0"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "words", "shown"),
    [
        ("demo/pairs", [], ["about 341 to draw, 8,184 passes", "shapes, 2,048 images"]),
        ("data/pairs-samples", [], ["to draw", "shapes/score"]),
        ("data/pairs-downgrade", [f"recipe.data.paths=[{REAL}]"], ["69, at most", "blur, grid, noise"]),
        ("data/pairs-other-caption", [f"recipe.data.paths=[{REAL}]"], ["at most 23"]),
    ],
)
def test_the_dry_run_tells_the_cost_and_writes_nothing(preset, words, shown, capsys, tmp_path):
    config = ROOT / "tune_configs" / f"{preset}.yaml"
    assert main(["--config", str(config), *words, f"out={tmp_path / 'out'}", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in shown:
        assert text in said
    assert not (tmp_path / "out").exists()


def test_rows_have_the_columns_of_the_schema(tmp_path):
    make_pairs(job(tmp_path / "out", samples(limit=1)), QUIET)
    assert pq.read_schema(shard_files(tmp_path / "out")[0]).names == [*SCHEMA.names, "score_0", "score_1"]


@pytest.mark.ray
def test_ray_actors_make_the_pairs_that_one_process_makes(tmp_path, ray_cluster):
    recipe = World(count=12, sampler=FAST)
    alone = make_pairs(job(tmp_path / "alone", recipe, shard_pairs=4), QUIET)
    shared = make_pairs(job(tmp_path / "shared", recipe, shard_pairs=4, workers=1), QUIET)
    assert shared == alone
    for ours, theirs in zip(shard_files(tmp_path / "shared"), shard_files(tmp_path / "alone"), strict=True):
        assert Path(ours).read_bytes() == Path(theirs).read_bytes()
