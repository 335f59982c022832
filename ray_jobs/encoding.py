"""Images and captions to shards of a latent cache: tasks decode, actors that hold the encoders encode and write."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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
from dpo_core.data.texts import write_texts
from dpo_core.families import AnyFamily, Precision
from dpo_core.families.autoencoder import load_encoder
from ray_jobs.cluster import ClusterSection, gpus_each, start_ray

if TYPE_CHECKING:
    import ray.data

MEMORY_BYTES = 1 << 30
"""Posteriors that an encoding process remembers: 8,000 images of SD1.5 in float32."""
BLACK = b"black"
"""Stands for the digest of the image that fills the place of a broken one."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its row groups, each the slots of one row group of the source."""

    path: str
    groups: list[list[Slot]]


@dataclass(frozen=True)
class TextTask:
    """One shard of text states to write."""

    path: str
    captions: list[str]


@dataclass(frozen=True)
class Recipe:
    """How images become latents, and captions what the text encoders say of them."""

    family: AnyFamily
    data: DataSection
    dtype: str
    precision: Precision
    flips: bool


Decoded = list[list[LoadedRow | RowRejected]]
"""Row groups of decoded pairs; in place of one whose chosen image is unusable, why."""


def decode(task: ShardTask, recipe: Recipe) -> Decoded:
    """Read and crop the images of a shard."""
    # Centre crops, not mirrored: the seed decides nothing. What a run makes of an image is its own matter.
    plain = recipe.data.model_copy(update={"rejected": "given", "flip": "none"})
    rows = ImageRows(plain, seed=0, cache_bytes=0)
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
    """Holds the autoencoder of a family; encodes decoded shards and writes them.

    An image is encoded once, however often it comes, as long as it is among those that were met last.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._images = load_encoder(recipe.family, best_device(), recipe.precision)
        self._posteriors: OrderedDict[bytes, list[bytes]] = OrderedDict()

    def write(self, task: ShardTask, decoded: Decoded) -> None:
        groups = [
            [self._row(slot, row) for slot, row in zip(slots, rows, strict=True)]
            for slots, rows in zip(task.groups, decoded, strict=True)
        ]
        write_shard(task.path, groups)

    def __call__(self, row: pa.Table) -> pa.Table:
        task, decoded = pickle.loads(row.column("task")[0].as_buffer())
        self.write(task, decoded)
        return pa.table({"done": [1]})

    def _row(self, slot: Slot, row: LoadedRow | RowRejected) -> dict[str, Any]:
        """A row of SHARD_SCHEMA."""
        record: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
        place = {"source_file": slot.group.file, "source_row": slot.group.first_row + slot.row}
        record |= {"pair_id": slot.pair_id, "chosen_captions": [], "rejected_captions": []} | place
        failure = row.rejected if isinstance(row, LoadedRow) else row
        if isinstance(failure, RowRejected):
            record |= {"reason": str(failure.reason), "detail": failure.detail}
        if isinstance(row, RowRejected):
            return record
        black = LoadedImage(np.zeros_like(row.chosen.values), row.chosen.geometry, BLACK)
        images = [row.chosen, row.rejected if isinstance(row.rejected, LoadedImage) else black]
        packed = [b"".join(parts) for parts in zip(*(self._posterior(image) for image in images), strict=True)]
        return record | {
            "chosen_captions": list(row.chosen_captions),
            "rejected_captions": list(row.rejected_captions),
            **dict(zip(("posterior", "mirrored"), packed, strict=False)),
            "shape": list(self._shape),
            "geometry": [value for image in images for value in image.geometry.tolist()],
            "digest": row.chosen.digest,
        }

    def _posterior(self, image: LoadedImage) -> list[bytes]:
        """Mean and deviation of an image, and of the mirrored one where it is asked for."""
        if image.digest not in self._posteriors:
            pixels = torch.from_numpy(np.ascontiguousarray(image.values.transpose(1, 2, 0))).permute(2, 0, 1)[None]
            variants = [pixels, pixels.flip(3)] if self._recipe.flips else [pixels]
            stored = np.dtype(self._recipe.dtype).newbyteorder("<")
            both = [torch.cat(self._images.encode_images(variant)).cpu().numpy() for variant in variants]
            self._shape = both[0].shape[1:]
            self._posteriors[image.digest] = [values.astype(stored).tobytes() for values in both]
            held = sum(map(len, self._posteriors[image.digest])) * len(self._posteriors)
            if held > MEMORY_BYTES:
                self._posteriors.popitem(last=False)
        self._posteriors.move_to_end(image.digest)
        return self._posteriors[image.digest]


class TextEncoder:
    """Holds the text encoders of a family; encodes captions one by one and writes what they say."""

    def __init__(self, recipe: Recipe) -> None:
        self._dtype = recipe.dtype
        self._family = recipe.family.load(best_device(), recipe.precision, "text")

    def write(self, task: TextTask) -> None:
        encoded = []
        for caption in task.captions:
            self._family.condition([caption], torch.zeros((1, 6), dtype=torch.int32))
            encoded += self._family.memory.take()
        write_texts(task.path, encoded, self._dtype)

    def __call__(self, row: pa.Table) -> pa.Table:
        self.write(pickle.loads(row.column("task")[0].as_buffer()))
        return pa.table({"done": [1]})


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode_here(tasks: list[ShardTask], recipe: Recipe) -> Iterator[None]:
    """One process, no Ray; yields after each shard."""
    if tasks:
        encoder = ShardEncoder(recipe)
        for task in tasks:
            encoder.write(task, decode(task, recipe))
            yield


def encode_texts_here(tasks: list[TextTask], recipe: Recipe) -> Iterator[None]:
    """One process, no Ray; yields after each shard."""
    if tasks:
        encoder = TextEncoder(recipe)
        for task in tasks:
            encoder.write(task)
            yield


def encode_on_ray(tasks: list[ShardTask], recipe: Recipe, cluster: ClusterSection) -> Iterator[None]:
    """Decoding tasks feed ``cluster.num_workers`` encoding actors; yields after each shard."""
    from ray_jobs.stream import tasks_at_once

    def decoded(dataset: Any) -> Any:
        import ray.data

        decode_row: Any = _decode_row
        return dataset.map_batches(
            decode_row,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"recipe": recipe},
            num_cpus=cluster.cpus_per_read,
            compute=ray.data.TaskPoolStrategy(size=min(tasks_at_once(1), len(tasks))),
        )

    return _on_actors(tasks, ShardEncoder, recipe, cluster, decoded)


def encode_texts_on_ray(tasks: list[TextTask], recipe: Recipe, cluster: ClusterSection) -> Iterator[None]:
    """``cluster.num_workers`` actors; yields after each shard."""
    return _on_actors(tasks, TextEncoder, recipe, cluster, lambda dataset: dataset)


def _on_actors(
    tasks: Sequence[ShardTask | TextTask],
    encoder: Any,
    recipe: Recipe,
    cluster: ClusterSection,
    before: Callable[[Any], Any],
) -> Iterator[None]:
    from ray_jobs.stream import quietly

    start_ray()

    def make() -> "ray.data.Dataset":
        import ray.data

        rows = [{"task": pickle.dumps(task)} for task in tasks]
        return before(ray.data.from_items(rows, override_num_blocks=len(rows))).map_batches(
            encoder,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(recipe,),
            compute=ray.data.ActorPoolStrategy(size=min(cluster.num_workers, len(rows))),
            num_cpus=cluster.cpus_per_worker,
            num_gpus=gpus_each(cluster) or None,
        )

    results: Any = iter(quietly(make).iter_batches(batch_size=1, batch_format="pyarrow"))
    with closing(results):
        for _ in results:
            yield


def _decode_row(row: pa.Table, *, recipe: Recipe) -> pa.Table:
    task: ShardTask = pickle.loads(row.column("task")[0].as_py())
    packed = pickle.dumps((task, decode(task, recipe)), protocol=5)
    return pa.table({"task": pa.array([packed], type=pa.large_binary())})
