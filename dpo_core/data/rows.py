"""One pair at a time: decoded and cropped images, or posteriors from a latent cache."""

import hashlib
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_core import randomness
from dpo_core.data import images, latents, rejects, schema
from dpo_core.data.plan import Place, Slot
from dpo_core.data.quality import read_quality
from dpo_core.data.quarantine import RowRejected
from dpo_core.data.reader import RowReader
from dpo_core.data.section import DataSection

PROMPT_IMAGE_SIDE = 224
"""What the image encoders of image prompts look at."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """uint8 ``[3, H, W]`` pixels or a float32 ``[2, C, h, w]`` posterior, and geometry ``[6]`` as in `PairBatch`."""

    values: NDArray[np.uint8] | NDArray[np.float32]
    geometry: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """One pair."""

    chosen: LoadedImage
    rejected: LoadedImage | RowRejected | None
    """Or why it cannot be used; None where it will be the chosen image of another pair."""
    digest: bytes
    """Of the chosen image as stored: equal for equal images."""
    chosen_captions: tuple[str, ...]
    rejected_captions: tuple[str, ...]
    prompt_image: NDArray[np.uint8] | None = None
    """``[3, 224, 224]`` where it is asked for."""
    quality: NDArray[np.float32] | None = None
    """``[2, h, w]`` where it is asked for."""


class Rows(Protocol):
    """Where pairs are read from."""

    def read(self, slot: Slot) -> LoadedRow:
        """Raises RowRejected when the row cannot be used, ValueError when its file cannot be read."""
        ...

    def donate(self, place: Place, slot: Slot) -> tuple[LoadedImage, bytes]:
        """The chosen image at ``place`` as the rejected image of ``slot``, and its digest. Raises as `read` does."""
        ...


class ImageRows:
    """Rows with encoded images; keeps recently read row groups up to ``cache_bytes``.

    ``quality_shape`` is what every patch quality map must have.
    """

    def __init__(
        self, section: DataSection, seed: int, quality_shape: tuple[int, int] | None = None, *, cache_bytes: int
    ) -> None:
        self._section = section
        self._seed = seed
        self._quality_shape = quality_shape
        self._limits = images.ImageLimits(section.min_side, int(section.max_megapixels * 1e6), section.max_aspect)
        self._captions = schema.caption_columns(section.captions == "per_image")
        maps = schema.QUALITY if section.quality else ()
        self._reader = RowReader((*self._captions, *schema.IMAGES, *schema.LABELS, *maps), max_bytes=cache_bytes)

    def read(self, slot: Slot) -> LoadedRow:
        row = self._reader.row(slot.group, slot.row)
        pair, side = self._pair(row, slot.pair_id)
        quality = read_quality(row, side, self._quality_shape) if self._section.quality else None
        image = self._decode(pair.chosen, "chosen")
        chosen, geometry = self._crop(image, slot, "chosen", self._section.resolution)
        prompt = self._crop(image, slot, "chosen", PROMPT_IMAGE_SIDE)[0] if self._section.prompt_image else None
        return LoadedRow(
            chosen=LoadedImage(_channels_first(chosen), geometry),
            rejected=self._rejected(pair, slot, chosen, geometry),
            digest=_digest(pair.chosen),
            chosen_captions=pair.chosen_captions,
            rejected_captions=pair.rejected_captions,
            prompt_image=None if prompt is None else _channels_first(prompt),
            quality=quality,
        )

    def donate(self, place: Place, slot: Slot) -> tuple[LoadedImage, bytes]:
        pair, _ = self._pair(self._reader.row(*place), slot.pair_id)
        image = self._decode(pair.chosen, "chosen")
        return self._as_rejected(image, slot), _digest(pair.chosen)

    def _pair(self, row: pa.Table, pair_id: str) -> tuple[schema.PreferencePair, int]:
        side = schema.chosen_side(*(row.column(name)[0].as_py() for name in schema.LABELS))
        assert side is not None, "the plan leaves ties out"
        encoded = [_only(schema.read_images(row.column(name))) for name in schema.IMAGES]
        texts = [_only(schema.read_texts(row.column(name))) for name in self._captions]
        return schema.make_pair(pair_id, side, encoded, texts), side

    def _rejected(
        self, pair: schema.PreferencePair, slot: Slot, chosen: NDArray[np.uint8], geometry: NDArray[np.int32]
    ) -> LoadedImage | RowRejected | None:
        kind = self._section.rejected
        if kind == "other":
            return None
        if kind == "given":
            try:
                return self._as_rejected(self._decode(pair.rejected, "rejected"), slot)
            except RowRejected as rejected:
                return rejected
        worse = rejects.make_worse(kind, chosen, self._seed, slot.epoch, slot.pair_id)
        return LoadedImage(_channels_first(worse), geometry)

    def _as_rejected(self, image: NDArray[np.uint8], slot: Slot) -> LoadedImage:
        crop, geometry = self._crop(image, slot, "rejected", self._section.resolution)
        return LoadedImage(_channels_first(crop), geometry)

    def _decode(self, data: bytes | None, name: str) -> NDArray[np.uint8]:
        try:
            return images.decode(data, self._limits)
        except RowRejected as rejected:
            raise RowRejected(rejected.reason, f"{name} image: {rejected.detail}".rstrip(": ")) from rejected

    def _crop(
        self, image: NDArray[np.uint8], slot: Slot, name: str, side: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """uint8 ``[side, side, 3]`` and the geometry."""

        def draw(purpose: str) -> float:
            return randomness.uniform(self._seed, slot.epoch, slot.pair_id, purpose)

        x, y = (draw(f"crop {axis}") if self._section.crop == "random" else 0.5 for axis in "xy")
        flip = self._section.flip
        mirrored = flip != "none" and draw("flip" if flip == "pair" else f"flip {name}") < 0.5
        crop = images.training_crop(image, side, x=x, y=y, flip=mirrored)
        geometry = images.crop_geometry(images.size_of(image), side, x=x, y=y, flip=mirrored)
        return crop, np.array(geometry, dtype=np.int32)


class LatentRows:
    """Rows of a latent cache; keeps recently read row groups up to ``cache_bytes``."""

    def __init__(self, section: DataSection, cache: latents.LatentCache, *, cache_bytes: int) -> None:
        self._other = section.rejected == "other"
        self._cache = cache
        self._reader = RowReader(latents.SHARD_SCHEMA.names, max_bytes=cache_bytes)

    def read(self, slot: Slot) -> LoadedRow:
        row, (chosen, rejected) = self._images(slot.group, slot.row)
        unusable = latents.why_unusable(row)
        return LoadedRow(
            chosen=chosen,
            rejected=None if self._other else unusable or rejected,
            digest=row["digest"],
            chosen_captions=tuple(row["chosen_captions"]),
            rejected_captions=tuple(row["rejected_captions"]),
        )

    def donate(self, place: Place, slot: Slot) -> tuple[LoadedImage, bytes]:
        row, (chosen, _) = self._images(*place)
        return chosen, row["digest"]

    def _images(self, group: latents.RowGroup, row: int) -> tuple[dict, list[LoadedImage]]:
        values = self._reader.row(group, row).to_pylist()[0]
        posterior = latents.read_posterior(values, self._cache)
        geometry = np.array(values["geometry"], dtype=np.int32).reshape(2, 6)
        return values, [LoadedImage(posterior[side], geometry[side]) for side in (0, 1)]


def _channels_first(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view: whoever puts it into a batch copies it once."""
    return crop.transpose(2, 0, 1)


def _digest(data: bytes | None) -> bytes:
    assert data is not None, "an image that was decoded has bytes"
    return hashlib.blake2b(data, digest_size=16).digest()


def _only(values: list[T]) -> T:
    (value,) = values
    return value
