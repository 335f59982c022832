import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_core.data import latents
from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import Quarantined, Reason, write_quarantine

SHAPE = (4, 2, 3)
SECTION = DataSection(paths=["cache"], resolution=32, max_quarantined_share=0.5)


def row(pair_id: str, value: float | None, dtype: str = "float32") -> dict:
    posterior = None if value is None else np.full((2, 2, *SHAPE), value, dtype=dtype).tobytes()
    return {
        "pair_id": pair_id,
        "chosen_captions": [] if value is None else [f"chosen {pair_id}"],
        "rejected_captions": [] if value is None else [f"rejected {pair_id}"],
        "posterior": posterior,
        "mirrored": None,
        "shape": None if value is None else list(SHAPE),
        "geometry": None if value is None else [40, 50, 0, 5, 32, 32, 32, 32, 0, 0, 32, 32],
        "digest": None if value is None else pair_id.encode(),
        "reason": "image_null" if value is None else None,
        "detail": "" if value is None else None,
        "source_file": "source.parquet",
        "source_row": int(pair_id),
    }


def make_cache(folder: Path, *, dtype: str = "float32", complete: bool = True) -> latents.LatentCache:
    """Two shards, three row groups, five placed rows of which row 3 is unusable; a tie and a caption were left out."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [folder / latents.shard_name(index) for index in (0, 1)]
    latents.write_shard(shards[0], [[row("0", 0.5, dtype), row("1", 1.5, dtype)], [row("2", 2.5, dtype)]])
    latents.write_shard(shards[1], [[row("3", None), row("4", 1 / 3, dtype)]])
    cache = latents.LatentCache(
        encoder="abc",
        model="embedded",
        precision="fp32",
        resolution=32,
        captions="shared",
        dtype=dtype,
        source="fingerprint",
        shard_pairs=3,
        limits={"min_side": 32},
        shape=SHAPE,
        complete=complete,
        total=7,
        ties=1,
    )
    latents.write_cache(folder, cache)
    planned = Quarantined("9", "source.parquet", 9, Reason.CAPTION_NULL)
    found = latents.shard_quarantine(latents.shard_files(folder))
    write_quarantine(latents.quarantine_file(folder), [planned, *found])
    return cache


def test_the_description_of_a_cache_comes_back_as_it_was(tmp_path):
    assert not latents.is_cache(tmp_path)
    cache = make_cache(tmp_path)
    assert latents.is_cache(tmp_path)
    assert latents.read_cache(tmp_path) == cache


def test_a_plan_over_a_cache_counts_every_row_of_the_source(tmp_path):
    make_cache(tmp_path)
    plan = Plan.build(SECTION.model_copy(update={"paths": [str(tmp_path)]}))
    assert (plan.total, plan.rows, plan.ties) == (7, 5, 1)
    assert [record.reason for record in plan.quarantined] == [Reason.CAPTION_NULL]
    assert plan.pair_ids.to_pylist() == ["0", "1", "2", "3", "4"]
    assert [plan.starts.tolist(), plan.fingerprint] == [[0, 2, 3, 5], "fingerprint"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches_of_a_cache_hold_posteriors_in_float32(tmp_path, dtype):
    make_cache(tmp_path, dtype=dtype)
    section = SECTION.model_copy(update={"paths": [str(tmp_path)]})
    (batch,) = next(step_batches(Plan.build(section), section, Share(0, 5, 5)))
    assert batch.pixels is None
    assert batch.posterior is not None
    assert batch.posterior.shape == (5, 2, 2, *SHAPE)
    assert batch.posterior.dtype == torch.float32
    values = {pair: values.unique().tolist() for pair, values in zip(batch.pair_ids, batch.posterior, strict=True)}
    assert values == {"0": [0.5], "1": [1.5], "2": [2.5], "3": [0.0], "4": [float(np.dtype(dtype).type(1 / 3))]}
    assert dict(zip(batch.pair_ids, batch.weights.tolist(), strict=True))["3"] == 0
    assert [(record.pair_id, record.reason) for record in batch.quarantined] == [("3", Reason.IMAGE_NULL)]
    assert set(batch.rejected_captions) == {"", *(f"rejected {pair}" for pair in "0124")}
    assert batch.geometry is not None
    geometry = dict(zip(batch.pair_ids, batch.geometry.tolist(), strict=True))
    assert geometry["4"] == [[40, 50, 0, 5, 32, 32], [32, 32, 0, 0, 32, 32]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 64}, "prepared with data.resolution=32, but data.resolution=64"),
        ({"captions": "per_image"}, "prepared with data.captions=shared"),
        ({"crop": "random"}, r"cannot serve data\.crop=random;"),
        ({"crop": "random", "flip": "pair"}, r"cannot serve data\.crop=random, data\.flip=pair;"),
        ({"rejected": "blur"}, r"cannot serve data\.rejected=blur;"),
        ({"prompt_image": True}, r"cannot serve data\.prompt_image=true;"),
        ({"quality": True}, r"cannot serve data\.quality=true;"),
        ({"max_quarantined_share": 0.1}, r"2 of 7 rows"),
    ],
)
def test_settings_that_a_cache_cannot_honour_are_refused(tmp_path, changes, message):
    make_cache(tmp_path)
    with pytest.raises(ValueError, match=message):
        Plan.build(SECTION.model_copy(update={"paths": [str(tmp_path)], **changes}))


def test_an_unfinished_cache_is_refused(tmp_path):
    make_cache(tmp_path, complete=False)
    with pytest.raises(ValueError, match="unfinished latent cache"):
        Plan.build(SECTION.model_copy(update={"paths": [str(tmp_path)]}))


def test_a_cache_beside_other_paths_is_refused(tmp_path):
    make_cache(tmp_path)
    with pytest.raises(ValueError, match="mixes a latent cache with other paths"):
        Plan.build(SECTION.model_copy(update={"paths": [str(tmp_path), "b.parquet"]}))


def test_a_damaged_description_is_one_clear_error(tmp_path):
    make_cache(tmp_path)
    (tmp_path / "cache.json").write_text('{"encoder": 1}')
    with pytest.raises(ValueError, match=r"cache\.json cannot be read as the description of a latent cache"):
        latents.read_cache(tmp_path)


def test_a_cache_of_an_older_format_is_refused_with_what_to_do(tmp_path):
    make_cache(tmp_path)
    file = tmp_path / "cache.json"
    fields = json.loads(file.read_text())
    assert fields.pop("format") == latents.FORMAT == 3
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"cache of format 1, but .* format 3; run `palate prepare` into a new folder"):
        Plan.build(SECTION.model_copy(update={"paths": [str(tmp_path)]}))


def test_caches_differ_by_what_decides_their_shards_and_by_nothing_else(tmp_path):
    cache = make_cache(tmp_path)
    assert cache.differences(replace(cache, complete=False, shape=(), model="the same by another name")) == ""
    assert cache.differences(replace(cache, dtype="float16")) == "dtype float32 there, float16 here"
    assert "encoder abc there, def here" in cache.differences(replace(cache, encoder="def", resolution=64))
