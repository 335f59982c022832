"""Latent caches made in tests, and when one is as good as the images."""

from pathlib import Path

import torch

from dpo_core.data.batches import DataSection, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.families import SD15
from ray_jobs.cluster import ClusterSection
from ray_jobs.prepare import CacheSection, PrepareJob
from tests.same_batches import flat, pixels_of, take

ASSETS = Path(__file__).parents[1] / "assets"


def job(model: str, folder: Path, *, workers: int = 0, name: str = "real_pairs.parquet", **cache) -> PrepareJob:
    return PrepareJob(
        family=SD15(model=model),
        data=DataSection(paths=[str(ASSETS / name)], resolution=16, max_quarantined_share=0.5),
        cache=CacheSection(folder=str(folder), **{"shard_pairs": 8, **cache}),
        cluster=ClusterSection(num_workers=workers),
    )


def cached(work: PrepareJob) -> DataSection:
    return work.data.model_copy(update={"paths": [work.cache.folder]})


SHARE = Share(seed=5, global_batch_size=8, worker_batch_size=8)


def check_latents_match_images(work: PrepareJob, tolerance: float = 0) -> None:
    family = work.family.load(torch.device("cpu"), "fp32")
    fresh = flat(take(step_batches(Plan.build(work.data), work.data, SHARE), 6))
    stored = flat(take(step_batches(Plan.build(cached(work)), cached(work), SHARE), 6))
    for images, posteriors in zip(fresh, stored, strict=True):
        assert images.pair_ids == posteriors.pair_ids
        assert images.epochs == posteriors.epochs
        assert images.chosen_captions == posteriors.chosen_captions
        assert images.rejected_captions == posteriors.rejected_captions
        assert images.geometry is not None
        assert posteriors.geometry is not None
        assert torch.equal(images.geometry, posteriors.geometry)
        assert torch.equal(images.weights, posteriors.weights)
        lost = [
            sorted((record.pair_id, record.reason, record.detail) for record in batch.quarantined)
            for batch in (images, posteriors)
        ]
        assert lost[0] == lost[1]
        assert posteriors.posterior is not None
        mean, std = family.encode_images(pixels_of(images).flatten(0, 1))
        expected = torch.stack([mean, std], dim=1).unflatten(0, (len(images), 2))
        there = images.weights > 0
        torch.testing.assert_close(posteriors.posterior[there], expected[there], rtol=tolerance, atol=tolerance)
        assert not posteriors.posterior[~there].any()
