"""Pairs of chosen images and the same made worse (Self-DPO or SUDO, arXiv 2504.14534)."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from dpo_core.data import images
from dpo_core.data.labelled import LABELLED_BY
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.rejects import make_worse
from ray_jobs.pairing.base import FromSet, Half, columns_of, fingerprint, made_pair, reads_of, stored_half
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row, Source


class Downgrade(FromSet):
    """Both images are stored without loss, as centre crops of ``data.resolution``.

    What `data.rejected` makes while training is made here once: it can be looked at, and a latent cache can hold it.
    Training on these pairs at the same resolution and without random crops is training with `data.rejected` in epoch 0.
    """

    kind: Literal["downgrade"] = "downgrade"
    ways: list[Literal["blur", "grid", "noise"]] = Field(default=["blur"], min_length=1)
    """How images are made worse; each way makes a pair of its own. Shrunk to a quarter and enlarged, two cells of a
    grid exchanged, noise added."""

    def work(self, source: Source, seed: int) -> Recipe:
        return MakeWorse(self, seed, self.labelled_by(), columns_of(source), reads_of(source), self.per_image)

    def plan(self, source: Source) -> list[tuple[str, str]]:
        pairs = source.rows * len(self.ways)
        size = 2 * 3 * self.data.resolution**2 * pairs
        return [("pairs", f"{pairs:,}, at most {size / 1e6:,.1f} MB as PNG"), ("ways", ", ".join(self.ways))]


@dataclass(frozen=True)
class MakeWorse(Recipe):
    """One chosen image in, a pair for each way out."""

    section: Downgrade
    seed: int
    labelled: tuple[str, ...]
    columns: tuple[pa.Field, ...]
    reads: tuple[str, ...]
    per_image: bool

    uses_gpu = False

    def read(self, row: Row) -> Any:
        """The centre crop of the chosen image, uint8 ``[resolution, resolution, 3]``."""
        assert row.side is not None, "ties are left out"
        data = self.section.data
        limits = images.ImageLimits(data.min_side, int(data.max_megapixels * 1e6), data.max_aspect)
        image = images.decode(row.read[row.side], limits)
        return np.ascontiguousarray(images.training_crop(image, data.resolution, x=0.5, y=0.5, flip=False))

    def load(self) -> Maker:
        return lambda rows: [self._pairs(row) for row in rows]

    def _pairs(self, row: Row) -> Outcome:
        chosen = stored_half(row, png(row.read))
        made = []
        for way in self.section.ways:
            worse = make_worse(way, row.read, self.seed, 0, row.pair_id)
            if not np.array_equal(worse, row.read):
                data = png(worse)
                made.append(made_pair(row, chosen, Half(data, fingerprint(data), None, way)))
        unchanged = len(self.section.ways) - len(made)
        if not made:
            return Outcome(rejected=RowRejected(Reason.IMAGES_IDENTICAL, "the chosen image cannot be made worse"))
        return Outcome.made(*made, **({"images that a way left as they were": unchanged} if unchanged else {}))

    def report(self, files: list[str]) -> dict[str, Any]:
        """The chosen image is chosen by whoever labelled the set it comes from."""
        del files
        return {LABELLED_BY: list(self.labelled)}


def png(pixels: np.ndarray) -> bytes:
    """Bytes that decode to the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()
