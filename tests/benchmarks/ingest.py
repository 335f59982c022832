"""Pairs of photographs a second into a latent cache by `palate prepare`, with one encoding worker and with more.

python -m tests.benchmarks.ingest [--workers 1 2] [--pairs 256] [--side 512] [--resolution 128]

The autoencoder is the embedded model's, one thread per worker. What Ray takes to start does not count: the clock runs
from the moment at which every worker has written a shard.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.data.schema import SCHEMA
from dpo_core.data.section import DataSection
from dpo_core.families import SD15
from ray_jobs.cluster import ClusterSection
from ray_jobs.prepare import CacheSection, PrepareJob, encode, image_plan, make_shards
from tests.benchmarks.decode import photographs

MODEL = Path(__file__).parents[2] / "dpo_core" / "embedded" / "model"
SHARD = 8


def write_pairs(file: Path, pairs: int, side: int) -> None:
    images, empty = photographs(side, 2 * pairs), dict.fromkeys(SCHEMA.names)
    rows = [
        empty | {"caption": "a photograph", "label_0": 1.0, "label_1": 0.0, "ranking_id": i, "jpg_0": a, "jpg_1": b}
        for i, (a, b) in enumerate(zip(images[::2], images[1::2], strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, row_group_size=SHARD)


def rate(job: PrepareJob, folder: Path) -> float:
    """Pairs a second, by wall clock, after the first shards."""
    folder.mkdir()
    plan = image_plan(job)
    shards = make_shards(plan, job.cache.shard_pairs)
    done = [time.monotonic() for _ in encode(job, str(folder), plan, shards, list(range(len(shards))))]
    warm = 2 * job.cluster.num_workers
    return SHARD * (len(done) - warm) / (done[-1] - done[warm - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--resolution", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs.parquet"
        write_pairs(pairs, arguments.pairs, arguments.side)
        alone = 0.0
        for workers in arguments.workers:
            job = PrepareJob(
                family=SD15(model=str(MODEL)),
                data=DataSection(paths=[str(pairs)], resolution=arguments.resolution),
                cache=CacheSection(shard_pairs=SHARD),
                cluster=ClusterSection(num_workers=workers, cpus_per_worker=0.5, cpus_per_read=0.25),
            )
            found = rate(job, Path(scratch) / f"cache-{workers}")
            alone = alone or found
            print(f"{workers} worker(s): {found:6.1f} pairs/s, {found / alone:.2f} times the first", flush=True)


if __name__ == "__main__":
    main()
