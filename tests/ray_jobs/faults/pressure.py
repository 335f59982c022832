"""Streams more decoded pairs than the object store holds to a slow consumer: ``python -m ... FOLDER STEPS``.

A process of its own, since a process has one Ray. Prints what it has seen as JSON.
"""

import hashlib
import json
import pickle
import sys
import time
from pathlib import Path
from threading import Event, Thread

import ray

from dpo_core.data.batches import PairBatch, Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.data.section import DataSection
from ray_jobs import stream
from ray_jobs.cluster import start_ray
from ray_jobs.stream import ray_step_batches
from tests.same_batches import pixels_of, take

SHARE = Share(0, 64, 64)


def digest(batches: list[PairBatch]) -> str:
    return hashlib.sha256(
        b"".join(pickle.dumps(batch.pair_ids) + pixels_of(batch).numpy().tobytes() for batch in batches)
    ).hexdigest()


def spilled_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("ray_spilled_objects*/*") if path.is_file())


def main(pairs: str, steps: int, scratch: Path) -> None:
    stream.UNIT_BYTES = 16 << 20  # to this small store what the usual units are to one of a gigabyte
    section = DataSection(paths=[pairs], resolution=128, min_side=64)
    plan = Plan.build(section)
    start_ray()
    stop, peak = Event(), [0]

    def watch() -> None:
        while not stop.wait(0.2):
            peak[0] = max(peak[0], spilled_bytes(scratch))

    watcher = Thread(target=watch)
    watcher.start()
    got, decoded = [], 0
    for batches in ray_step_batches(plan, section, SHARE, 0, steps):
        got.append(digest(batches))
        decoded += sum(pixels_of(batch).nbytes for batch in batches)
        time.sleep(0.15)
    stop.set()
    watcher.join()
    expected = [digest(batches) for batches in take(step_batches(plan, section, SHARE, 0), steps)]
    store = ray.cluster_resources()["object_store_memory"]
    print(json.dumps({"same": got == expected, "decoded": decoded, "store": store, "peak_spilled": peak[0]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
