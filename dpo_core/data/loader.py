"""Reads slots into batches: images or posteriors, rejected images from other pairs, captions and what is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dpo_core import randomness
from dpo_core.data import latents
from dpo_core.data.plan import Slot
from dpo_core.data.quarantine import Quarantined, RowRejected
from dpo_core.data.rows import PROMPT_IMAGE_SIDE, ImageRows, LatentRows, LoadedImage, LoadedRow, Rows
from dpo_core.data.scan import RowGroup
from dpo_core.data.section import DataSection


@dataclass(slots=True)
class PairBatch:
    """Some pairs of one update step. Dimension 1 of the tensors is chosen (0) and rejected (1).

    A row that could not be decoded leaves an empty slot: weight 0, zeros, empty captions, a record in ``quarantined``.
    Either ``pixels`` (uint8 ``[B, 2, 3, H, W]``) is there, or ``posterior`` (float32 ``[B, 2, 2, C, h, w]``; dimension
    2 is mean and standard deviation of the autoencoder's unscaled posterior). ``weights`` is float32 ``[B]``.
    ``geometry`` is int32 ``[B, 2, 6]``: original height and width, top and left of the crop in the resized image,
    height and width of the crop. Where they are asked for, ``quality`` is float32 ``[B, 2, h, w]`` (patch quality maps)
    and ``prompt_image`` uint8 ``[B, 3, 224, 224]`` (what an image prompt shows, all zeros where it is dropped).
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


class BatchLoader:
    """Turns slots into batches. ``quality_shape`` is that of the plan, ``cache_bytes`` what may stay in memory."""

    def __init__(
        self,
        section: DataSection,
        seed: int,
        cache: latents.LatentCache | None,
        quality_shape: tuple[int, int] | None = None,
        *,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self._section = section
        self._seed = seed
        self._quality_shape = quality_shape
        self._cache = cache
        self._rows: Rows
        if cache is None:
            self._rows = ImageRows(section, seed, quality_shape, cache_bytes=cache_bytes)
        else:
            self._rows = LatentRows(section, seed, cache, cache_bytes=cache_bytes)

    def load(self, slots: Sequence[Slot]) -> PairBatch:
        """The batch of ``slots``, in their order.

        Raises ValueError when a file cannot be read, and when no other image is found for a rejected one.
        """
        batch = self._empty(slots)
        waiting: dict[int, bytes] = {}
        # Row group by row group, so that a reader without room for many reads each of them once.
        for index in sorted(range(len(slots)), key=lambda index: _stored(slots[index].group)):
            slot = slots[index]
            try:
                row = self._rows.read(slot)
                if isinstance(row.rejected, RowRejected):
                    raise row.rejected
            except RowRejected as rejected:
                batch.quarantined.append(self._rows.record(slot, rejected))
                continue
            self._put(batch, index, 0, row.chosen)
            if row.rejected is None:
                waiting[index] = row.chosen.digest
            else:
                self._put(batch, index, 1, row.rejected)
            self._describe(batch, index, slot, row)
        for index in sorted(waiting, key=lambda index: _stored(slots[index].donors[0][0])):
            self._put(batch, index, 1, self._donated(slots[index], waiting[index]))
        return batch

    def _empty(self, slots: Sequence[Slot]) -> PairBatch:
        section, count = self._section, len(slots)
        side, cache = section.resolution, self._cache
        return PairBatch(
            pair_ids=[slot.pair_id for slot in slots],
            epochs=[slot.epoch for slot in slots],
            weights=torch.zeros(count),
            chosen_captions=[""] * count,
            rejected_captions=[""] * count,
            # Stored as they are decoded, channels last: turning them round is for the device that encodes them.
            pixels=torch.zeros((count, 2, side, side, 3), dtype=torch.uint8).movedim(4, 2) if cache is None else None,
            posterior=torch.zeros((count, 2, 2, *cache.shape)) if cache is not None else None,
            geometry=torch.tensor([side, side, 0, 0, side, side], dtype=torch.int32).repeat(count, 2, 1),
            quality=torch.zeros((count, 2, *self._quality_shape)) if self._quality_shape is not None else None,
            prompt_image=(
                torch.zeros((count, 3, PROMPT_IMAGE_SIDE, PROMPT_IMAGE_SIDE), dtype=torch.uint8)
                if section.prompt_image
                else None
            ),
        )

    def _put(self, batch: PairBatch, index: int, side: int, image: LoadedImage) -> None:
        values = batch.pixels if batch.pixels is not None else batch.posterior
        assert values is not None
        assert batch.geometry is not None
        np.copyto(values[index, side].numpy(), image.values)
        batch.geometry[index, side] = torch.from_numpy(image.geometry)

    def _describe(self, batch: PairBatch, index: int, slot: Slot, row: LoadedRow) -> None:
        """Everything of a pair but its images."""
        batch.weights[index] = 1
        drops_caption, drops_image = self._dropout(slot)
        if not drops_caption:
            batch.chosen_captions[index], batch.rejected_captions[index] = self._captions(slot, row)
        if batch.prompt_image is not None and row.prompt_image is not None and not drops_image:
            np.copyto(batch.prompt_image[index].numpy(), row.prompt_image)
        if batch.quality is not None and row.quality is not None:
            batch.quality[index] = torch.from_numpy(row.quality)

    def _donated(self, slot: Slot, digest: bytes) -> LoadedImage:
        for place in slot.donors:
            try:
                image = self._rows.donate(place, slot)
            except RowRejected:
                continue  # it is reported where its own turn comes
            if image.digest != digest:
                return image
        raise ValueError(
            f"data.rejected=other finds no other image for pair {slot.pair_id}: {len(slot.donors)} other rows have the "
            "same chosen image or none that can be used; give data with more images, or use blur, grid or noise"
        )

    def _dropout(self, slot: Slot) -> tuple[bool, bool]:
        """Whether caption and image prompt are dropped: one draw, so that the three cases exclude one another."""
        section = self._section
        draw = randomness.uniform(self._seed, slot.epoch, slot.pair_id, "caption dropout")
        caption = section.caption_dropout
        image = caption + section.prompt_image_dropout
        joint = image + section.joint_dropout
        return draw < caption or image <= draw < joint, caption <= draw < joint

    def _captions(self, slot: Slot, row: LoadedRow) -> tuple[str, str]:
        draw = randomness.uniform(self._seed, slot.epoch, slot.pair_id, "caption choice")
        chosen, rejected = row.chosen_captions, row.rejected_captions
        if self._section.rejected != "given":
            rejected = chosen
        return chosen[int(draw * len(chosen))], rejected[int(draw * len(rejected))]


def _stored(group: RowGroup) -> tuple[str, int]:
    return group.file, group.index
