import pyarrow.parquet as pq
import pytest
import torch

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from ray_jobs.pairing.downgrade import Downgrade
from ray_jobs.pairs import make_pairs
from tests.ray_jobs.pair_jobs import QUIET, REAL, job, made, pixels, real
from tests.same_batches import flat, pixels_of, take
from tests.tiny_data import make_pairs as make_set

SHARE = Share(seed=3, global_batch_size=8, worker_batch_size=8)


@pytest.mark.parametrize("way", ["blur", "grid", "noise"])
def test_training_on_made_downgrades_is_training_with_rejected_images_made_on_the_way(way, tmp_path):
    make_pairs(job(tmp_path / "out", Downgrade(data=real(), ways=[way])), QUIET)
    stored = real().model_copy(update={"paths": [str(tmp_path / "out")]})
    on_the_way = real(rejected=way)
    ours, theirs = (
        {pair_id: pixels for batch in flat(take(step_batches(Plan.build(data), data, SHARE), 2))
         for pair_id, pixels in zip(batch.pair_ids, pixels_of(batch), strict=True)}
        for data in (stored, on_the_way)
    )  # fmt: skip
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 4
    for pair_id in shared:
        assert torch.equal(ours[pair_id], theirs[pair_id])


def test_each_way_makes_a_pair_that_says_where_it_is_from(tmp_path):
    record = make_pairs(job(tmp_path / "out", Downgrade(data=real(), ways=["blur", "noise"])), QUIET)
    source = {row["ranking_id"]: row for row in pq.read_table(REAL).to_pylist()}
    rows = made(tmp_path / "out")
    assert record.totals == {"read": 24, "made": 46, "in quarantine": 0, "ties left out": 1}
    for row, way in zip(rows, ["blur", "noise"] * 23, strict=True):
        origin = source[row["ranking_id"]]
        side = int(origin["label_1"])
        assert (row["label_0"], row["label_1"]) == (origin["label_0"], origin["label_1"])
        assert row["caption"] == origin["caption"]
        assert row[f"image_{side}_uid"] == row["best_image_uid"]
        assert row[f"model_{side}"] == origin[f"model_{side}"]
        assert row[f"model_{1 - side}"] == way
        assert row[f"image_{1 - side}_url"] is None
        assert pixels(row["jpg_0"]).shape == pixels(row["jpg_1"]).shape == (32, 32, 3)


def test_captions_of_single_images_become_those_of_the_chosen_one_and_old_maps_go(tmp_path):
    pairs = make_set(tmp_path / "set", 4, grid=4)
    data = DataSection(paths=[str(pairs)], resolution=16, min_side=16, captions="per_image")
    make_pairs(job(tmp_path / "out", Downgrade(data=data)), QUIET)
    for row in made(tmp_path / "out"):
        side = int(row["label_1"])
        assert row["caption_0"] == row["caption_1"]
        assert f"as image {side} shows it" in row["caption_0"]
        assert row["patch_quality_0"] is None
