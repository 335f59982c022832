"""Which rows can be trained on and where they lie."""

import hashlib
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from dpo_core.data import files
from dpo_core.data.images import ImageLimits
from dpo_core.data.quarantine import Quarantined, RowRejected, check_share
from dpo_core.data.scan import RowGroup, Scan, scan_rows
from dpo_core.section import Section


class DataSection(Section):
    """Which preference pairs to train on, and how an image becomes a training crop."""

    paths: list[str] = []
    """Parquet files, globs or folders with preference pairs."""
    resolution: int = Field(default=512, ge=8)
    """Side of the square training images, in pixels."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cut from the resized image; the same place for both images of a pair."""
    flip: Literal["none", "pair", "independent"] = "none"
    """Mirror half of the pairs (pair), or half of the images (independent)."""
    captions: Literal["shared", "per_image"] = "shared"
    """One caption for both images (column caption), or one each (caption_0, caption_1)."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of pairs trained with the empty caption."""
    lanes: int = Field(default=16, ge=1)
    """Parts an epoch is cut into and shared out; at least as many as workers, and a divisor of the global batch."""
    window: int = Field(default=2, ge=1)
    """Row groups whose rows are shuffled together; each lane keeps about this many in memory."""
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when more than this share of the rows cannot be used."""
    min_side: int = Field(default=32, ge=1)
    """Smallest side of a usable image, in pixels."""
    max_megapixels: float = Field(default=16.0, gt=0)
    """Largest usable image, in millions of pixels; checked before decoding."""
    max_aspect: float = Field(default=4.0, ge=1)
    """Largest ratio of an image's long side to its short side."""

    @property
    def limits(self) -> ImageLimits:
        return ImageLimits(self.min_side, int(self.max_megapixels * 1_000_000), self.max_aspect)


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of the endless stream: a row (``row`` counts within the group) in a given epoch."""

    group: RowGroup
    row: int
    pair_id: str
    epoch: int

    def quarantined(self, rejected: RowRejected) -> Quarantined:
        row = self.group.first_row + self.row
        return Quarantined(self.pair_id, self.group.file, row, rejected.reason, rejected.detail)


@dataclass(frozen=True)
class Plan:
    """The usable rows of a data set, in stored order.

    ``starts[i]:starts[i + 1]`` are the usable rows of ``groups[i]``; ``places[j]`` is the row within its group and
    ``pair_ids[j]`` the id of usable row j. ``total = rows + ties + len(quarantined)``.
    """

    groups: list[RowGroup]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    pair_ids: pa.StringArray
    total: int
    ties: int
    quarantined: list[Quarantined]
    fingerprint: str
    """Hash of file names, file sizes, ids and which rows are usable; the same wherever the set lies."""

    @property
    def rows(self) -> int:
        """Usable rows, the length of an epoch."""
        return len(self.places)

    @classmethod
    def build(cls, section: DataSection) -> "Plan":
        """Read labels, captions and ids of every row.

        Raises ValueError for missing files or columns, damaged files, too many unusable rows, and when none is left.
        """
        found = files.expand_paths(section.paths)
        plan = cls._of(scan_rows(found, per_image_captions=section.captions == "per_image"), found)
        check_share(plan.quarantined, plan.total, section.max_quarantined_share)
        if not plan.rows:
            raise ValueError(
                f"no row of {', '.join(section.paths)} can be trained on: {plan.total} rows, {plan.ties} ties, "
                f"{len(plan.quarantined)} unusable"
            )
        return plan

    @classmethod
    def _of(cls, scan: Scan, found: list[str]) -> "Plan":
        groups, starts, places, ids = list[RowGroup](), [0], list[int](), list[str]()
        quarantined: list[Quarantined] = []
        ties = position = 0
        for group, verdicts in zip(scan.groups, scan.verdicts, strict=True):
            for row, verdict in enumerate(verdicts):
                if isinstance(verdict, RowRejected):
                    quarantined.append(Slot(group, row, scan.pair_ids[position], 0).quarantined(verdict))
                elif verdict is None:
                    ties += 1
                else:
                    places.append(row)
                    ids.append(scan.pair_ids[position])
                position += 1
            if len(places) > starts[-1]:
                groups.append(group)
                starts.append(len(places))
        return cls(
            groups=groups,
            starts=np.array(starts, dtype=np.int64),
            places=np.array(places, dtype=np.int32),
            pair_ids=pa.array(ids, type=pa.string()),
            total=position,
            ties=ties,
            quarantined=quarantined,
            fingerprint=_fingerprint(found, places, ids),
        )

    def slot(self, index: int, epoch: int) -> Slot:
        """Usable row ``index`` as it is met in ``epoch``."""
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return Slot(self.groups[group], int(self.places[index]), self.pair_ids[index].as_py(), epoch)


def _fingerprint(found: list[str], places: list[int], ids: list[str]) -> str:
    digest = hashlib.sha256()
    for name, file in zip(files.short_names(found), found, strict=True):
        digest.update(f"{name}\x1f{os.path.getsize(file)}\x1e".encode())
    for place, pair_id in zip(places, ids, strict=True):
        digest.update(f"{place}\x1f{pair_id}\x1e".encode())
    return digest.hexdigest()
