import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from dpo_core.data import images
from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.patch_features import PatchFeatures, VisionSection
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import read_quarantine
from dpo_core.families import SD15
from dpo_core.recipe import TrainSection
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import load_config
from ray_jobs.patches import PatchesJob, QualitySection, main, make_patches
from ray_jobs.shards.job import shard_files
from tests.tiny_data import make_pairs
from tests.tiny_models import make_tiny_sd
from tests.tiny_vision import make_tiny_vision
from tests.train_runs import rows as logged_rows
from tests.train_runs import run

pytestmark = pytest.mark.timeout(600)  # a cluster on a busy machine takes minutes to start

ASSETS = Path(__file__).parents[1] / "assets"
QUIET = Console(quiet=True)
MAPS = ["patch_quality_0", "patch_quality_1"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    return str(make_tiny_vision(tmp_path_factory.mktemp("vision")))


def job(
    model: str, out: Path, source: Path = ASSETS / "real_pairs.parquet", *, workers: int = 0, **given
) -> PatchesJob:
    data = {"resolution": 32, "max_quarantined_share": 0.5} | given.pop("data", {})
    return PatchesJob(
        out=str(out),
        data=DataSection(paths=[str(source)], **data),
        vision=VisionSection(model=model, **given.pop("vision", {})),
        cluster=ClusterSection(num_workers=workers),
        **{"shard_pairs": 8, "quality": QualitySection(low=-1.0, latent_factor=4), **given},
    )


def made(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in shard_files(folder)])


def test_maps_are_the_best_matches_of_the_patches_of_the_crops_that_training_cuts(vision, tmp_path):
    work = job(vision, tmp_path / "out")
    make_patches(work, QUIET)
    see = PatchFeatures(work.vision, 32, torch.device("cpu"))
    table = made(tmp_path / "out")
    assert len(table) == 24
    for index in (0, 7, 23):
        crops = [
            images.training_crop(
                images.decode(table.column(name)[index].as_py(), images.ImageLimits()), 32, x=0.5, y=0.5, flip=False
            )
            for name in ("jpg_0", "jpg_1")
        ]
        seen = see(torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())).numpy()
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        cosines = seen[0] @ seen[1].T
        for name, axis in (("patch_quality_0", 1), ("patch_quality_1", 0)):
            stored = np.array(table.column(name)[index].as_py())
            # Patches of 4 pixels and 4 pixels per latent: every latent has a patch of its own.
            np.testing.assert_allclose(stored, (cosines.max(axis).reshape(8, 8) + 1) / 2, atol=1e-5)


def test_everything_else_of_the_rows_is_carried_over(vision, tmp_path):
    make_patches(job(vision, tmp_path / "out"), QUIET)
    source = pq.read_table(ASSETS / "real_pairs.parquet")
    table = made(tmp_path / "out")
    for name in ("jpg_0", "jpg_1", "caption", "label_0", "label_1", "ranking_id", "model_0"):
        assert table.column(name).to_pylist() == source.column(name).to_pylist()


def test_patchdpo_trains_on_the_maps(vision, tmp_path):
    pairs, model = make_pairs(tmp_path / "pairs", 8), make_tiny_sd(tmp_path / "sd")
    family = SD15(model=str(model))
    work = job(vision, tmp_path / "out", pairs, family=family, data={"resolution": 16, "min_side": 16})
    make_patches(work, QUIET)
    assert np.array(made(tmp_path / "out").column(MAPS[0])[0].as_py()).shape == (8, 8)
    config = load_config(
        TrainSection,
        None,
        [
            "objective.kind=patchdpo", "family.kind=sd15", f"family.model={model}", f"data.paths=[{tmp_path / 'out'}]",
            "data.quality=true", "data.resolution=16", "data.min_side=16", "loop.max_steps=2",
            "loop.global_batch_size=4", "loop.worker_batch_size=4", "data.lanes=4", "loop.log_every=1",
        ],
    )  # fmt: skip
    run(config, tmp_path / "run")
    assert [row["step"] for row in logged_rows(tmp_path / "run")] == [1, 2]


def test_training_reads_the_maps_of_chosen_and_rejected_image(vision, tmp_path):
    make_patches(job(vision, tmp_path / "out"), QUIET)
    data = DataSection(paths=[str(tmp_path / "out")], resolution=32, quality=True, lanes=1)
    batch = next(step_batches(Plan.build(data), data, Share(seed=0, global_batch_size=23, worker_batch_size=23)))[0]
    assert batch.quality is not None
    assert batch.quality.shape == (23, 2, 8, 8)
    table = made(tmp_path / "out")
    stored = {str(row["ranking_id"]): row for row in table.select(["ranking_id", "label_1", *MAPS]).to_pylist()}
    for pair_id, maps in zip(batch.pair_ids, batch.quality, strict=True):
        chosen = int(stored[pair_id]["label_1"])
        assert maps.tolist() == [stored[pair_id][MAPS[chosen]], stored[pair_id][MAPS[1 - chosen]]]


def test_rows_whose_images_cannot_be_compared_are_in_quarantine_and_ties_are_kept(vision, tmp_path):
    record = make_patches(job(vision, tmp_path / "out", ASSETS / "hostile.parquet"), QUIET)
    lost = {item.row: str(item.reason) for item in read_quarantine(tmp_path / "out" / "quarantine.parquet")}
    expected = json.loads((ASSETS / "hostile.json").read_text())["hostile.parquet"]
    # A label is not needed to compare two images.
    unlabelled = {"label_missing", "label_nan", "label_out_of_range", "label_inconsistent"}
    reasons = {case["row"]: case["reason"] for case in expected if case["reason"]}
    assert lost == {row: reason for row, reason in reasons.items() if reason not in unlabelled}
    assert record.totals["made"] == len(made(tmp_path / "out")) == 40 - len(lost)


def test_a_killed_job_goes_on_and_a_finished_one_does_nothing(vision, tmp_path, capsys):
    work = job(vision, tmp_path / "out")
    make_patches(work, QUIET)
    whole = [Path(file).read_bytes() for file in shard_files(tmp_path / "out")]
    os.remove(shard_files(tmp_path / "out")[1])
    fields = json.loads((tmp_path / "out" / "job.json").read_text())
    (tmp_path / "out" / "job.json").write_text(json.dumps(fields | {"complete": False}))
    kept = os.stat(shard_files(tmp_path / "out")[0]).st_mtime_ns
    make_patches(work, QUIET)
    assert [Path(file).read_bytes() for file in shard_files(tmp_path / "out")] == whole
    assert os.stat(shard_files(tmp_path / "out")[0]).st_mtime_ns == kept
    make_patches(work)
    assert "nothing to do" in capsys.readouterr().out


def test_another_model_or_rule_in_the_same_folder_is_refused(vision, tmp_path):
    make_patches(job(vision, tmp_path / "out"), QUIET)
    with pytest.raises(ValueError, match=r"holds another set \(quality.low -1.0 there, 0.0 here\)"):
        make_patches(job(vision, tmp_path / "out", quality=QualitySection(latent_factor=4)), QUIET)
    other = make_tiny_vision(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"vision.weights \w+ there, \w+ here"):
        make_patches(job(str(other), tmp_path / "out"), QUIET)


def test_the_report_says_how_much_of_the_range_is_used(vision, tmp_path):
    record = make_patches(job(vision, tmp_path / "out", quality=QualitySection(high=0.1, latent_factor=4)), QUIET)
    stored = np.array(made(tmp_path / "out").column(MAPS[1]).to_pylist())
    assert record.report[MAPS[1]] == {
        "mean": pytest.approx(stored.mean(), abs=1e-4),
        "at 0": pytest.approx((stored == 0).mean(), abs=1e-4),
        "at 1": pytest.approx((stored == 1).mean(), abs=1e-4),
    }
    assert record.report[MAPS[1]]["at 1"] > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"crop": "random"}}, r"cannot serve data\.crop=random"),
        ({"data": {"rejected": "blur"}}, r"cannot serve data\.rejected=blur"),
        ({"data": {"resolution": 30}}, r"30 is not a multiple of quality\.latent_factor=4"),
        ({"vision": {"side": 30}}, r"vision\.side: 30 is not a multiple of the model's patches of 4 pixels"),
    ],
)
def test_settings_whose_maps_would_not_lie_on_the_crops_are_refused(vision, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_patches(job(vision, tmp_path / "out", **change), QUIET)


def test_a_range_without_width_is_refused():
    with pytest.raises(ValueError, match=r"low \(0.5\) must be below high \(0.5\)"):
        QualitySection(low=0.5, high=0.5)


def test_the_dry_run_tells_the_cost_and_writes_nothing(vision, tmp_path, capsys):
    words = [f'data.paths=["{ASSETS / "real_pairs.parquet"}"]', f"vision.model={vision}", f"out={tmp_path / 'out'}"]
    assert main([*words, "data.resolution=64", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "64 x 64 pixels, 256 patches of 4" in shown
    assert "48 images" in shown
    assert "8 x 8, 0.0 MB" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_ray_actors_write_the_maps_that_one_process_writes(vision, tmp_path, ray_cluster):
    make_patches(job(vision, tmp_path / "alone"), QUIET)
    make_patches(job(vision, tmp_path / "shared", workers=1), QUIET)
    alone, shared = ([Path(file).read_bytes() for file in shard_files(tmp_path / name)] for name in ("alone", "shared"))
    assert len(alone) == 2
    assert alone == shared
