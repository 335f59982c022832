"""Jobs for tests of `palate pairs`."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from dpo_core.data.batches import DataSection
from eval.generate import SamplerSection
from ray_jobs.cluster import ClusterSection
from ray_jobs.pairing import AnyRecipe
from ray_jobs.pairing.samples import Samples
from ray_jobs.pairs import PairsJob
from ray_jobs.shards.job import shard_files

ROOT = Path(__file__).parents[2]
REAL = ROOT / "tests" / "assets" / "real_pairs.parquet"
QUIET = Console(quiet=True)
FAST = SamplerSection(scheduler="dpmpp", num_inference_steps=1, guidance_scale=1.0, batch_size=8)


def job(out: Path, recipe: AnyRecipe, *, workers: int = 0, shard_pairs: int = 8, seed: int = 3) -> PairsJob:
    cluster = ClusterSection(num_workers=workers)
    return PairsJob(out=str(out), recipe=recipe, seed=seed, shard_pairs=shard_pairs, cluster=cluster)


def made(folder: Path) -> list[dict]:
    """The rows of a made set."""
    return pa.concat_tables([pq.read_table(file) for file in shard_files(folder)]).to_pylist()


def real(**given) -> DataSection:
    """Pairs of real photos."""
    return DataSection(paths=[str(REAL)], resolution=32, **given)


def samples(**given) -> Samples:
    """A recipe that draws quickly."""
    return Samples.model_validate({"limit": 5, "images_per_prompt": 3, "sampler": FAST, **given})


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
