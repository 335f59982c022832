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
from dpo_core.data.quarantine import Quarantined, RowRejected
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
    digest: bytes = b""
    """Of the image as stored: equal for equal images. Empty for an image that was made."""


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """One pair."""

    chosen: LoadedImage
    rejected: LoadedImage | RowRejected | None
    """Or why it cannot be used; None where it will be the chosen image of another pair."""
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

    def donate(self, place: Place, slot: Slot) -> LoadedImage:
        """The chosen image at ``place`` as the rejected image of ``slot``. Raises as `read` does."""
        ...

    def record(self, slot: Slot, rejected: RowRejected) -> Quarantined:
        """Which row of which file of images cannot be used, and why."""
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
            chosen=LoadedImage(_channels_first(chosen), geometry, _digest(pair.chosen)),
            rejected=self._rejected(pair, slot, chosen, geometry),
            chosen_captions=pair.chosen_captions,
            rejected_captions=pair.rejected_captions,
            prompt_image=None if prompt is None else _channels_first(prompt),
            quality=quality,
        )

    def donate(self, place: Place, slot: Slot) -> LoadedImage:
        pair, _ = self._pair(self._reader.row(*place), slot.pair_id)
        return self._as_rejected(pair.chosen, slot, "chosen")

    def record(self, slot: Slot, rejected: RowRejected) -> Quarantined:
        return slot.quarantined(rejected)

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
                return self._as_rejected(pair.rejected, slot, "rejected")
            except RowRejected as rejected:
                return rejected
        worse = rejects.make_worse(kind, chosen, self._seed, slot.epoch, slot.pair_id)
        return LoadedImage(_channels_first(worse), geometry)

    def _as_rejected(self, data: bytes | None, slot: Slot, name: str) -> LoadedImage:
        """``name`` is what the image is in its own pair."""
        crop, geometry = self._crop(self._decode(data, name), slot, "rejected", self._section.resolution)
        return LoadedImage(_channels_first(crop), geometry, _digest(data))

    def _decode(self, data: bytes | None, name: str) -> NDArray[np.uint8]:
        try:
            return images.decode(data, self._limits)
        except RowRejected as rejected:
            raise RowRejected(rejected.reason, f"{name} image: {rejected.detail}".rstrip(": ")) from rejected

    def _crop(
        self, image: NDArray[np.uint8], slot: Slot, name: str, side: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """uint8 ``[side, side, 3]`` and the geometry."""

        x, y = (_draw(self._seed, slot, f"crop {axis}") if self._section.crop == "random" else 0.5 for axis in "xy")
        mirrored = is_mirrored(self._section, self._seed, slot, name)
        crop = images.training_crop(image, side, x=x, y=y, flip=mirrored)
        geometry = images.crop_geometry(images.size_of(image), side, x=x, y=y, flip=mirrored)
        return crop, np.array(geometry, dtype=np.int32)


class LatentRows:
    """Rows of a latent cache; keeps recently read row groups up to ``cache_bytes``."""

    def __init__(self, section: DataSection, seed: int, cache: latents.LatentCache, *, cache_bytes: int) -> None:
        self._section = section
        self._seed = seed
        self._cache = cache
        unread = {"shape"} | ({"mirrored"} if section.flip == "none" else set())
        columns = [name for name in latents.SHARD_SCHEMA.names if name not in unread]
        self._reader = RowReader(columns, max_bytes=cache_bytes)

    def read(self, slot: Slot) -> LoadedRow:
        row = self._reader.row(slot.group, slot.row)
        chosen = self._image(row, 0, "chosen", slot)
        rejected = None
        if self._section.rejected != "other":
            rejected = latents.why_unusable(row) or self._image(row, 1, "rejected", slot)
        return LoadedRow(
            chosen=chosen,
            rejected=rejected,
            chosen_captions=tuple(row.column("chosen_captions")[0].as_py()),
            rejected_captions=tuple(row.column("rejected_captions")[0].as_py()),
        )

    def donate(self, place: Place, slot: Slot) -> LoadedImage:
        return self._image(self._reader.row(*place), 0, "rejected", slot)

    def record(self, slot: Slot, rejected: RowRejected) -> Quarantined:
        row = self._reader.row(slot.group, slot.row)
        file, number = (row.column(name)[0].as_py() for name in ("source_file", "source_row"))
        return Quarantined(slot.pair_id, file, number, rejected.reason, rejected.detail)

    def _image(self, row: pa.Table, side: int, name: str, slot: Slot) -> LoadedImage:
        """The image stored as chosen (0) or rejected (1), as the ``name`` image of ``slot``."""
        mirrored = is_mirrored(self._section, self._seed, slot, name)
        posterior = latents.read_posterior(row, self._cache, side, mirrored=mirrored)
        geometry = np.array(row.column("geometry")[0].as_py(), dtype=np.int32).reshape(2, 6)[side]
        if mirrored:
            height, width = map(int, geometry[:2])
            resolution = self._section.resolution
            geometry = np.array(
                images.crop_geometry((width, height), resolution, x=0.5, y=0.5, flip=True), dtype=np.int32
            )
        return LoadedImage(posterior, geometry, row.column("digest")[0].as_py() if side == 0 else b"")


def is_mirrored(section: DataSection, seed: int, slot: Slot, name: str) -> bool:
    """Whether the ``name`` image, chosen or rejected, of a slot is mirrored."""
    if section.flip == "none":
        return False
    return _draw(seed, slot, "flip" if section.flip == "pair" else f"flip {name}") < 0.5


def _draw(seed: int, slot: Slot, purpose: str) -> float:
    return randomness.uniform(seed, slot.epoch, slot.pair_id, purpose)


def _channels_first(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view: whoever puts it into a batch copies it once."""
    return crop.transpose(2, 0, 1)


def _digest(data: bytes | None) -> bytes:
    assert data is not None, "an image that was decoded has bytes"
    return hashlib.blake2b(data, digest_size=16).digest()


def _only(values: list[T]) -> T:
    (value,) = values
    return value
