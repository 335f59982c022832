"""Images to shards of latents: tasks decode, actors that hold the autoencoder encode and write."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from dpo_core.data.latents import SHARD_SCHEMA, write_shard
from dpo_core.data.plan import Slot
from dpo_core.data.quarantine import RowRejected
from dpo_core.data.rows import ImageRows, LoadedImage, LoadedRow
from dpo_core.data.section import DataSection
from dpo_core.families import AnyFamily, Precision
from dpo_core.families.autoencoder import load_encoder
from ray_jobs.cluster import ClusterSection, gpus_each, start_ray

if TYPE_CHECKING:
    import ray.data


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its row groups, each the slots of one row group of the source."""

    index: int
    path: str
    groups: list[list[Slot]]


@dataclass(frozen=True)
class Recipe:
    """How images become latents."""

    family: AnyFamily
    data: DataSection
    dtype: str
    precision: Precision
    batch_size: int


Decoded = list[list[LoadedRow | RowRejected]]
"""Row groups of decoded pairs; in place of one whose chosen image is unusable, why."""


def decode(task: ShardTask, recipe: Recipe) -> Decoded:
    """Read and crop the images of a shard."""
    # Centre crops without flips: the seed decides nothing. What a run makes of the rejected image is its own matter.
    rows = ImageRows(recipe.data.model_copy(update={"rejected": "given"}), seed=0, cache_bytes=0)
    decoded: Decoded = []
    for slots in task.groups:
        decoded.append([])
        for slot in slots:
            try:
                decoded[-1].append(rows.read(slot))
            except RowRejected as rejected:
                decoded[-1].append(rejected)
    return decoded


class ShardEncoder:
    """Holds the autoencoder of a family; encodes decoded shards and writes them."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._images = load_encoder(recipe.family, device, recipe.precision)

    def write(self, task: ShardTask, decoded: Decoded) -> None:
        groups = [
            [_row(slot, row, posterior) for slot, row, posterior in zip(slots, rows, self._encode(rows), strict=True)]
            for slots, rows in zip(task.groups, decoded, strict=True)
        ]
        write_shard(task.path, groups)

    def __call__(self, row: pa.Table) -> pa.Table:
        task, decoded = pickle.loads(row.column("decoded")[0].as_buffer())
        self.write(task, decoded)
        return pa.table({"shard": [task.index]})

    def _encode(self, rows: Sequence[LoadedRow | RowRejected]) -> list[np.ndarray | None]:
        """``[2, 2, C, h, w]`` of each usable row, None for the others."""
        usable = [index for index, row in enumerate(rows) if isinstance(row, LoadedRow)]
        posteriors: list[np.ndarray | None] = [None] * len(rows)
        for first in range(0, len(usable), self._recipe.batch_size):
            part = usable[first : first + self._recipe.batch_size]
            pixels = np.stack([_pixels(row) for row in (rows[index] for index in part) if isinstance(row, LoadedRow)])
            mean, std = self._images.encode_images(torch.from_numpy(pixels).flatten(0, 1))
            both = torch.stack([mean, std], dim=1).unflatten(0, (len(part), 2)).cpu().numpy()
            for index, posterior in zip(part, both, strict=True):
                posteriors[index] = posterior.astype(np.dtype(self._recipe.dtype).newbyteorder("<"))
        return posteriors


def encode_here(tasks: list[ShardTask], recipe: Recipe) -> Iterator[int]:
    """One process, no Ray; yields each finished shard's index."""
    if tasks:
        encoder = ShardEncoder(recipe)
        for task in tasks:
            encoder.write(task, decode(task, recipe))
            yield task.index


def encode_on_ray(tasks: list[ShardTask], recipe: Recipe, cluster: ClusterSection) -> Iterator[int]:
    """Decoding tasks feed ``cluster.num_workers`` encoding actors; yields each finished shard's index."""
    from ray_jobs.stream import quietly

    start_ray()
    dataset = quietly(lambda: _dataset(tasks, recipe, cluster))
    results: Any = iter(dataset.iter_batches(batch_size=1, batch_format="pyarrow"))
    with closing(results):
        for table in results:
            yield table.column("shard")[0].as_py()


def _dataset(tasks: list[ShardTask], recipe: Recipe, cluster: ClusterSection) -> "ray.data.Dataset":
    import ray.data

    from ray_jobs.stream import tasks_at_once

    rows = [{"task": pickle.dumps(task)} for task in tasks]
    decode_row: Any = _decode_row
    encoder: Any = ShardEncoder
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            decode_row,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"recipe": recipe},
            num_cpus=cluster.cpus_per_read,
            compute=ray.data.TaskPoolStrategy(size=min(tasks_at_once(1), len(rows))),
        )
        .map_batches(
            encoder,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(recipe,),
            compute=ray.data.ActorPoolStrategy(size=min(cluster.num_workers, len(rows))),
            num_cpus=cluster.cpus_per_worker,
            num_gpus=gpus_each(cluster) or None,
        )
    )


def _decode_row(row: pa.Table, *, recipe: Recipe) -> pa.Table:
    task: ShardTask = pickle.loads(row.column("task")[0].as_py())
    packed = pickle.dumps((task, decode(task, recipe)), protocol=5)
    return pa.table({"decoded": pa.array([packed], type=pa.large_binary())})


def _pixels(row: LoadedRow) -> np.ndarray:
    """``[2, 3, H, W]``, black in place of an unusable rejected image."""
    rejected = row.rejected.values if isinstance(row.rejected, LoadedImage) else np.zeros_like(row.chosen.values)
    return np.stack([row.chosen.values, rejected])


def _row(slot: Slot, row: LoadedRow | RowRejected, posterior: np.ndarray | None) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
    record |= {"pair_id": slot.pair_id, "source_file": slot.group.file, "source_row": slot.group.first_row + slot.row}
    failure = row.rejected if isinstance(row, LoadedRow) else row
    if isinstance(failure, RowRejected):
        record |= {"reason": str(failure.reason), "detail": failure.detail}
    if isinstance(row, RowRejected):
        return record | {"chosen_captions": [], "rejected_captions": []}
    assert posterior is not None
    rejected = row.rejected if isinstance(row.rejected, LoadedImage) else row.chosen
    return record | {
        "chosen_captions": list(row.chosen_captions),
        "rejected_captions": list(row.rejected_captions),
        "posterior": posterior.tobytes(),
        "shape": list(posterior.shape[2:]),
        "geometry": [*row.chosen.geometry.tolist(), *rejected.geometry.tolist()],
        "digest": row.digest,
    }
