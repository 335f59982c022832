import dataclasses
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ray_jobs.prepare
from dpo_core.data import latents
from dpo_core.data.encoder import check_encoder
from dpo_core.data.plan import Plan
from dpo_core.data.texts import TextStore, text_files
from dpo_core.families import SD15
from dpo_core.families.autoencoder import ImageEncoder
from ray_jobs.prepare import prepare
from tests.ray_jobs.caches import ASSETS, cached, check_latents_match_images, job
from tests.tiny_models import make_tiny_sd


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("tiny-sd")))


@pytest.mark.parametrize("flip", ["pair", "independent"])
@pytest.mark.parametrize("rejected", ["given", "other"])
def test_a_cache_with_mirrored_crops_serves_flips_as_the_images_do(model, tmp_path, flip, rejected):
    work = job(model, tmp_path / "cache", flips=True)
    prepare(work)
    flips = {"flip": flip, "rejected": rejected}
    check_latents_match_images(work.model_copy(update={"data": work.data.model_copy(update=flips)}))


def test_flips_without_mirrored_crops_are_refused_with_what_to_do(model, tmp_path):
    work = job(model, tmp_path / "cache")
    prepare(work)
    with pytest.raises(ValueError, match=r"data\.flip=pair; .* with cache\.flips=true"):
        Plan.build(cached(work).model_copy(update={"flip": "pair"}))


@pytest.mark.parametrize("flips", [False, True])
def test_a_pair_takes_the_bytes_of_its_latents_and_few_more(tmp_path, flips):
    # 256 pixels of the embedded model make the latents of 512 pixels of Stable Diffusion 1.5: 4 x 64 x 64.
    work = job("embedded", tmp_path / "cache", dtype="float16", flips=flips)
    pq.write_table(pq.read_table(ASSETS / "real_pairs.parquet").slice(0, 4), tmp_path / "four.parquet")
    four = {"resolution": 256, "paths": [str(tmp_path / "four.parquet")]}
    prepare(work.model_copy(update={"data": work.data.model_copy(update=four)}))
    files = latents.shard_files(tmp_path / "cache")
    columns = ["posterior", "mirrored"] if flips else ["posterior"]
    rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    assert {len(row[name]) for row in rows for name in columns} == {131_072}
    over = sum(os.path.getsize(file) for file in files) / len(rows) - 131_072 * len(columns)
    assert 0 < over < 1024


def test_an_image_that_comes_again_is_encoded_once_and_gives_the_same_row(model, tmp_path, monkeypatch):
    table = pq.read_table(ASSETS / "real_pairs.parquet").slice(0, 6)
    rows = [row for row in table.to_pylist() if row["label_0"] != row["label_1"]]
    for row in rows:  # everyone meets the first image, on the left or on the right
        row["jpg_0" if row["ranking_id"] % 2 else "jpg_1"] = rows[0]["jpg_0" if rows[0]["ranking_id"] % 2 else "jpg_1"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "again.parquet", row_group_size=2)
    encoded: list[int] = []
    encode = ImageEncoder.encode_images
    monkeypatch.setattr(ImageEncoder, "encode_images", lambda self, p: encoded.append(len(p)) or encode(self, p))
    work = job(model, tmp_path / "cache", shard_pairs=2)
    work = work.model_copy(update={"data": work.data.model_copy(update={"paths": [str(tmp_path / "again.parquet")]})})
    prepare(work)
    assert sum(encoded) == len({row[name] for row in rows for name in ("jpg_0", "jpg_1")}) == len(rows) + 1
    check_latents_match_images(work)


def test_text_states_are_stored_once_for_each_caption_and_the_empty_one(model, tmp_path):
    work = job(model, tmp_path / "cache", text=True)
    prepare(work)
    stored = [
        caption for file in text_files(tmp_path / "cache") for caption in pq.read_table(file)["caption"].to_pylist()
    ]
    used = latents.cached_captions(latents.shard_files(tmp_path / "cache"))
    assert sorted(stored) == sorted({"", *used})
    assert len(used) < 23
    plan = Plan.build(cached(work))
    assert plan.cache is not None
    store = TextStore(tmp_path / "cache", plan.cache, torch.float32)
    family = work.family.load(torch.device("cpu"), "fp32")
    for caption in stored:
        told = family.condition([caption], torch.zeros((1, 6), dtype=torch.int32))
        assert torch.equal(store.find("text", caption)[0], told["text"])
    with pytest.raises(ValueError, match=r"no text states of the caption 'never seen'"):
        store.find("text", "never seen")


def test_text_states_of_other_encoders_are_refused_for_training(model, tmp_path):
    work = job(model, tmp_path / "cache", text=True)
    prepare(work)
    plan = Plan.build(cached(work))
    check_encoder(plan, work.family)
    other = make_tiny_sd(tmp_path / "other", seed=1)
    shutil.rmtree(other / "vae")
    shutil.copytree(Path(model) / "vae", other / "vae")
    with pytest.raises(ValueError, match="states of the captions were encoded by the text encoders of"):
        check_encoder(plan, SD15(model=str(other)))


def test_a_killed_job_goes_on_with_the_text_states_that_are_missing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_jobs.prepare, "CAPTIONS_PER_SHARD", 4)
    work = job(model, tmp_path / "cache", text=True)
    folder = prepare(work)
    files = text_files(folder)
    assert len(files) > 2
    whole = {file: Path(file).read_bytes() for file in files}
    os.remove(files[1])
    latents.write_cache(folder, dataclasses.replace(latents.read_cache(folder), complete=False, shape=()))
    kept = os.stat(files[0]).st_mtime_ns
    prepare(work)
    assert {file: Path(file).read_bytes() for file in text_files(folder)} == whole
    assert os.stat(files[0]).st_mtime_ns == kept
