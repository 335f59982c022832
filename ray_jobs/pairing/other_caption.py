"""Pairs of a chosen image and the chosen image of another caption: good pictures of the wrong thing."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from dpo_core import randomness
from dpo_core.data import images
from dpo_core.data.labelled import LABELLED_BY
from ray_jobs.pairing.base import FromSet, columns_of, made_pair, reads_of, stored_half
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row, Source


class OtherCaption(FromSet):
    """The rejected image won under another caption of the same shard; both are stored as they are.

    What they teach is to show what the caption says, not to draw well. `data.rejected=other` does the same while
    training, anew in each epoch, but takes images of the same caption too.
    """

    kind: Literal["other_caption"] = "other_caption"

    def work(self, source: Source, seed: int) -> Recipe:
        return Exchange(self, seed, self.labelled_by(), columns_of(source), reads_of(source), self.per_image)

    def plan(self, source: Source) -> list[tuple[str, str]]:
        return [("pairs", f"at most {source.rows:,}, of images that are there")]


@dataclass(frozen=True)
class Exchange(Recipe):
    """One chosen image in, a pair with that of another row of its shard out."""

    section: OtherCaption
    seed: int
    labelled: tuple[str, ...]
    columns: tuple[pa.Field, ...]
    reads: tuple[str, ...]
    per_image: bool

    uses_gpu = False

    def read(self, row: Row) -> Any:
        """The chosen image as it is stored, once it is known to be one."""
        assert row.side is not None, "ties are left out"
        data = self.section.data
        limits = images.ImageLimits(data.min_side, int(data.max_megapixels * 1e6), data.max_aspect)
        images.decode(row.read[row.side], limits)
        return row.read[row.side]

    def load(self) -> Maker:
        def make(rows: list[Row]) -> list[Outcome]:
            # A way round the shard instead of a draw for each row: where all captions differ, every image serves once.
            way = int(randomness.uniform(self.seed, 0, rows[0].pair_id, "other caption") * (len(rows) - 1))
            return [self._pair(row, rows, index, way) for index, row in enumerate(rows)]

        return make

    def _pair(self, row: Row, rows: list[Row], own: int, way: int) -> Outcome:
        others = len(rows) - 1
        for step in range(others):
            donor = rows[(own + 1 + (way + step) % others) % len(rows)]
            if donor.read != row.read and not set(_captions(donor)) & set(_captions(row)):
                return Outcome.made(made_pair(row, stored_half(row, row.read), stored_half(donor, donor.read)))
        return Outcome(left_out="alone with their caption in their shard")

    def report(self, files: list[str]) -> dict[str, Any]:
        """The chosen image is chosen by whoever labelled the set it comes from."""
        del files
        return {LABELLED_BY: list(self.labelled)}


def _captions(row: Row) -> tuple[str, ...]:
    """Those of the chosen image."""
    assert row.side is not None, "ties are left out"
    return row.captions[row.side]
