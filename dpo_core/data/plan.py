"""Which rows can be trained on and where they lie."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_core.data import files, latents, locations
from dpo_core.data.quality import quality_shape
from dpo_core.data.quarantine import Quarantined, RowRejected, check_share, read_quarantine
from dpo_core.data.scan import RowGroup, Scan, scan_rows
from dpo_core.data.section import DataSection

Place = tuple[RowGroup, int]
"""A row, counted within its row group."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of the endless stream: a row (``row`` counts within the group) in a given epoch."""

    group: RowGroup
    row: int
    pair_id: str
    epoch: int
    donors: tuple[Place, ...] = ()
    """Rows whose chosen image may be the rejected one here, in the order in which to try them."""

    def quarantined(self, rejected: RowRejected) -> Quarantined:
        row = self.group.first_row + self.row
        return Quarantined(self.pair_id, self.group.file, row, rejected.reason, rejected.detail)


Part = tuple[RowGroup, list[int], list[str]]
"""A row group, its usable rows and their pair ids."""


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
    cache: latents.LatentCache | None = None
    """Set when the rows hold posteriors instead of images."""
    quality_shape: tuple[int, int] | None = None
    """(h, w) of the patch quality maps, where they are asked for."""

    @property
    def rows(self) -> int:
        """Usable rows, the length of an epoch."""
        return len(self.places)

    @classmethod
    def build(cls, section: DataSection) -> "Plan":
        """Read labels, captions and ids of every row, or the ids of a latent cache.

        Raises ValueError for missing files or columns, damaged files, too many unusable rows, and when none is left.
        """
        if any(latents.is_cache(path) for path in section.paths):
            return cls._of_cache(section)
        found = files.expand_paths(section.paths)
        scan = scan_rows(found, per_image_captions=section.captions == "per_image", quality=section.quality)
        parts, quarantined = _sort_out(scan)
        ties = sum(verdict is None for verdicts in scan.verdicts for verdict in verdicts)
        check_share(quarantined, len(scan.pair_ids), section.max_quarantined_share)
        if not any(ids for _, _, ids in parts):
            raise ValueError(
                f"no row of {', '.join(section.paths)} can be trained on: {len(scan.pair_ids)} rows, {ties} ties, "
                f"{len(quarantined)} unusable"
            )
        return cls._make(
            parts,
            total=len(scan.pair_ids),
            ties=ties,
            quarantined=quarantined,
            fingerprint=_fingerprint(found, parts),
            quality_shape=quality_shape(scan.groups) if section.quality else None,
        )

    @classmethod
    def _of_cache(cls, section: DataSection) -> "Plan":
        if len(section.paths) > 1:
            raise ValueError(f"data.paths mixes a latent cache with other paths: {', '.join(section.paths)}; give one")
        cache, parts = latents.open_cache(section.paths[0], resolution=section.resolution, captions=section.captions)
        if needs_images := section.needs_images(flips=cache.flips):
            hint = ", or `palate prepare` with cache.flips=true" if not section.needs_images(flips=True) else ""
            raise ValueError(
                f"{section.paths[0]} holds latents of centre crops, which cannot serve {needs_images}; leave that at "
                f"its default, or train on the images{hint}"
            )
        known = read_quarantine(latents.quarantine_file(section.paths[0]))
        check_share(known, cache.total, section.max_quarantined_share)
        placed = {pair_id for _, ids in parts for pair_id in ids}
        return cls._make(
            [(group, list(range(len(ids))), ids) for group, ids in parts],
            total=cache.total,
            ties=cache.ties,
            # The others have a place in the order and are reported when it is reached, as with images.
            quarantined=[record for record in known if record.pair_id not in placed],
            fingerprint=cache.source,
            cache=cache,
        )

    @classmethod
    def _make(cls, parts: list[Part], **facts: Any) -> "Plan":
        parts = [part for part in parts if part[2]]
        return cls(
            groups=[group for group, _, _ in parts],
            starts=np.cumsum([0, *(len(ids) for _, _, ids in parts)], dtype=np.int64),
            places=np.array([place for _, places, _ in parts for place in places], dtype=np.int32),
            pair_ids=pa.array([pair_id for _, _, ids in parts for pair_id in ids], type=pa.string()),
            **facts,
        )

    def slot(self, index: int, epoch: int) -> Slot:
        """Usable row ``index`` as it is met in ``epoch``."""
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return Slot(self.groups[group], int(self.places[index]), self.pair_ids[index].as_py(), epoch)

    def where(self, rows: NDArray[np.int64]) -> tuple[Place, ...]:
        """Where these usable rows lie."""
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        return tuple(
            (self.groups[group], row) for group, row in zip(groups.tolist(), self.places[rows].tolist(), strict=True)
        )


def _sort_out(scan: Scan) -> tuple[list[Part], list[Quarantined]]:
    parts: list[Part] = []
    quarantined: list[Quarantined] = []
    position = 0
    for group, verdicts in zip(scan.groups, scan.verdicts, strict=True):
        ids = scan.pair_ids[position : position + len(verdicts)]
        places = [row for row, verdict in enumerate(verdicts) if isinstance(verdict, int)]
        parts.append((group, places, [ids[row] for row in places]))
        for row, verdict in enumerate(verdicts):
            if isinstance(verdict, RowRejected):
                quarantined.append(Slot(group, row, ids[row], 0).quarantined(verdict))
        position += len(verdicts)
    return parts, quarantined


def _fingerprint(found: list[str], parts: list[Part]) -> str:
    digest = hashlib.sha256()
    for name, file in zip(files.short_names(found), found, strict=True):
        digest.update(f"{name}\x1f{locations.size(file)}\x1e".encode())
    for _, places, ids in parts:
        for place, pair_id in zip(places, ids, strict=True):
            digest.update(f"{place}\x1f{pair_id}\x1e".encode())
    return digest.hexdigest()
