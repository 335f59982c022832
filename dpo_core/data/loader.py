"""Reads slots into batches: decodes and crops images, or takes posteriors from a latent cache, and draws captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dpo_core import randomness
from dpo_core.data import images, latents, schema
from dpo_core.data.plan import DataSection, Slot
from dpo_core.data.quarantine import Quarantined, RowRejected
from dpo_core.data.reader import RowReader

T = TypeVar("T")


@dataclass(slots=True)
class PairBatch:
    """Some pairs of one update step. Dimension 1 of the tensors is chosen (0) and rejected (1).

    A row that could not be decoded leaves an empty slot: weight 0, zeros, empty captions, a record in ``quarantined``.
    Either ``pixels`` (uint8 ``[B, 2, 3, H, W]``) is there, or ``posterior`` (float32 ``[B, 2, 2, C, h, w]``; dimension
    2 is mean and standard deviation of the autoencoder's unscaled posterior). ``weights`` is float32 ``[B]``.
    ``geometry`` is int32 ``[B, 2, 6]``: original height and width, top and left of the crop in the resized image,
    height and width of the crop. Where they are asked for, ``quality`` is float32 ``[B, 2, h, w]`` (patch quality maps)
    and ``prompt_image`` uint8 ``[B, 3, 224, 224]`` (what an image prompt shows, black where it is dropped).
    """

    pair_ids: list[str]
    epochs: list[int]
    weights: torch.Tensor
    chosen_captions: list[str]
    rejected_captions: list[str]
    pixels: torch.Tensor | None = None
    posterior: torch.Tensor | None = None
    geometry: torch.Tensor | None = None
    quality: torch.Tensor | None = None
    prompt_image: torch.Tensor | None = None
    quarantined: list[Quarantined] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """One pair: uint8 ``[2, 3, H, W]`` pixels or a float32 ``[2, 2, C, h, w]`` posterior, geometry and captions."""

    values: NDArray[np.uint8] | NDArray[np.float32]
    geometry: NDArray[np.int32]
    """``[2, 6]``, as in PairBatch."""
    chosen_captions: tuple[str, ...]
    rejected_captions: tuple[str, ...]


class Rows(Protocol):
    """Where slots are read from."""

    def read(self, slot: Slot) -> LoadedRow:
        """Raises RowRejected when the row cannot be used, ValueError when its file cannot be read."""
        ...


class ImageRows:
    """Rows with encoded images; keeps recently read row groups up to ``cache_bytes``."""

    def __init__(self, section: DataSection, seed: int, *, cache_bytes: int) -> None:
        self._section = section
        self._seed = seed
        self._limits = images.ImageLimits(section.min_side, int(section.max_megapixels * 1e6), section.max_aspect)
        self._captions = schema.caption_columns(section.captions == "per_image")
        self._reader = RowReader((*self._captions, *schema.IMAGES, *schema.LABELS), max_bytes=cache_bytes)

    def read(self, slot: Slot) -> LoadedRow:
        row = self._reader.row(slot.group, slot.row)
        side = schema.chosen_side(*(row.column(name)[0].as_py() for name in schema.LABELS))
        assert side is not None, "the plan leaves ties out"
        encoded = [_only(schema.read_images(row.column(name))) for name in schema.IMAGES]
        texts = [_only(schema.read_texts(row.column(name))) for name in self._captions]
        pair = schema.make_pair(slot.pair_id, side, encoded, texts)
        pixels, geometry = self._crop(pair, slot.epoch)
        return LoadedRow(pixels, geometry, pair.chosen_captions, pair.rejected_captions)

    def _crop(self, pair: schema.PreferencePair, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        section = self._section

        def draw(purpose: str) -> float:
            return randomness.uniform(self._seed, epoch, pair.pair_id, purpose)

        x, y = (draw(f"crop {axis}") if section.crop == "random" else 0.5 for axis in "xy")
        crops, geometry = [], []
        for data, name in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
            flip = section.flip != "none" and draw("flip" if section.flip == "pair" else f"flip {name}") < 0.5
            try:
                image = images.decode(data, self._limits)
            except RowRejected as rejected:
                raise RowRejected(rejected.reason, f"{name} image: {rejected.detail}".rstrip(": ")) from rejected
            crops.append(images.training_crop(image, section.resolution, x=x, y=y, flip=flip))
            geometry.append(images.crop_geometry(image.size, section.resolution, x=x, y=y, flip=flip))
        return np.stack(crops).transpose(0, 3, 1, 2), np.array(geometry, dtype=np.int32)


class LatentRows:
    """Rows of a latent cache; keeps recently read row groups up to ``cache_bytes``."""

    def __init__(self, cache: latents.LatentCache, *, cache_bytes: int) -> None:
        self._cache = cache
        self._reader = RowReader(latents.SHARD_SCHEMA.names, max_bytes=cache_bytes)

    def read(self, slot: Slot) -> LoadedRow:
        row = self._reader.row(slot.group, slot.row).to_pylist()[0]
        posterior = latents.read_posterior(row, self._cache)
        geometry = np.array(row["geometry"], dtype=np.int32).reshape(2, 6)
        return LoadedRow(posterior, geometry, tuple(row["chosen_captions"]), tuple(row["rejected_captions"]))


class BatchLoader:
    """Turns slots into batches."""

    def __init__(
        self, section: DataSection, seed: int, cache: latents.LatentCache | None, *, cache_bytes: int = 2 << 30
    ) -> None:
        self._seed = seed
        self._dropout = section.caption_dropout
        self._latents = cache is not None
        self._side = section.resolution
        if cache is None:
            self._rows: Rows = ImageRows(section, seed, cache_bytes=cache_bytes)
            self._values = torch.zeros((2, 3, section.resolution, section.resolution), dtype=torch.uint8)
        else:
            self._rows = LatentRows(cache, cache_bytes=cache_bytes)
            self._values = torch.zeros((2, 2, *cache.shape))

    def load(self, slots: Sequence[Slot]) -> PairBatch:
        """The batch of ``slots``, in their order. Raises ValueError when a file cannot be read."""
        values = self._values.repeat(len(slots), *(1 for _ in self._values.shape))
        values = values.view(len(slots), *self._values.shape)
        batch = PairBatch(
            pair_ids=[slot.pair_id for slot in slots],
            epochs=[slot.epoch for slot in slots],
            weights=torch.zeros(len(slots)),
            chosen_captions=[""] * len(slots),
            rejected_captions=[""] * len(slots),
            pixels=None if self._latents else values,
            posterior=values if self._latents else None,
            geometry=torch.full((len(slots), 2, 6), self._side, dtype=torch.int32),
        )
        assert batch.geometry is not None
        # Row group by row group, so that a reader without room for many reads each of them once.
        for index in sorted(range(len(slots)), key=lambda index: (slots[index].group.file, slots[index].group.index)):
            slot = slots[index]
            try:
                row = self._rows.read(slot)
            except RowRejected as rejected:
                batch.quarantined.append(slot.quarantined(rejected))
                continue
            values[index] = torch.from_numpy(np.ascontiguousarray(row.values))
            batch.geometry[index] = torch.from_numpy(row.geometry)
            batch.weights[index] = 1
            batch.chosen_captions[index], batch.rejected_captions[index] = self._captions(row, slot)
        return batch

    def _captions(self, row: LoadedRow, slot: Slot) -> tuple[str, str]:
        if randomness.uniform(self._seed, slot.epoch, slot.pair_id, "caption dropout") < self._dropout:
            return "", ""
        draw = randomness.uniform(self._seed, slot.epoch, slot.pair_id, "caption choice")
        chosen, rejected = row.chosen_captions, row.rejected_captions
        return chosen[int(draw * len(chosen))], rejected[int(draw * len(rejected))]


def _only(values: list[T]) -> T:
    (value,) = values
    return value
