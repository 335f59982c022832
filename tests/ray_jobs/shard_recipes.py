"""Recipes for tests of shards; in a module of their own, so that Ray's workers find them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpo_core.data.images import ImageLimits, decode
from dpo_core.data.quarantine import Reason, RowRejected
from ray_jobs.shards.job import Maker, Outcome, Recipe, Row


class Shout(Recipe):
    """Captions in capitals, the widths of the images, and what was in ``jpg_1`` of the source; notes each call."""

    columns = (pa.field("caption", pa.string()), pa.field("widths", pa.list_(pa.int64())))
    reads = ("ranking_id",)

    def __init__(self, notes: Path, *, breaks_at: str = "", leaves_out: str = "", twice: bool = False) -> None:
        self.notes = notes
        self.breaks_at = breaks_at
        self.leaves_out = leaves_out
        self.twice = twice

    def read(self, row: Row) -> list[int]:
        return [np.asarray(decode(data, ImageLimits(min_side=16))).shape[1] for data in row.read]

    def load(self) -> Maker:
        def make(rows: list[Row]) -> list[Outcome]:
            with self.notes.open("a") as notes:
                notes.writelines(f"{row.pair_id}\n" for row in rows)
            return [self.outcome(row) for row in rows]

        return make

    def outcome(self, row: Row) -> Outcome:
        if row.pair_id == self.breaks_at:
            raise ValueError(f"no answer for {row.pair_id}")
        if row.pair_id == self.leaves_out:
            return Outcome(left_out="left out by the test", counts={"calls": 1})
        if len(row.captions[0][0]) > 80:
            return Outcome(rejected=RowRejected(Reason.CAPTION_EMPTY, "too long to shout"), counts={"calls": 1})
        assert row.values["ranking_id"] is None or str(row.values["ranking_id"]) == row.pair_id or "#" in row.pair_id
        made = {"caption": row.captions[0][0].upper(), "widths": row.read}
        return Outcome.made(*([made, made] if self.twice else [made]), calls=1)

    def report(self, files: list[str]) -> dict[str, Any]:
        return {"shards": len(files)}
