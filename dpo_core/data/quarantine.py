"""Rows that cannot be trained on: recorded with a reason, counted, written down, and too many of them stop the job."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_core.data.locations import open_parquet
from dpo_core.data.writing import writing


class Reason(StrEnum):
    """Why a row was left out."""

    RECORD_MALFORMED = "record_malformed"
    IMAGE_MISSING = "image_missing"
    IMAGE_NULL = "image_null"
    IMAGE_EMPTY = "image_empty"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_ASPECT_EXTREME = "image_aspect_extreme"
    IMAGES_IDENTICAL = "images_identical"
    CAPTION_NULL = "caption_null"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_REFUSED = "caption_refused"
    ANSWER_MISSING = "answer_missing"
    SCORE_MISSING = "score_missing"
    LABEL_MISSING = "label_missing"
    LABEL_NAN = "label_nan"
    LABEL_OUT_OF_RANGE = "label_out_of_range"
    LABEL_INCONSISTENT = "label_inconsistent"
    QUALITY_MISSING = "quality_missing"
    QUALITY_MALFORMED = "quality_malformed"


class RowRejected(Exception):
    """One row is unusable. Caught where the row is read and turned into a `Quarantined` record."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that was left out: where it stands (``row`` counts from 0 within ``file``) and why."""

    pair_id: str
    file: str
    row: int
    reason: Reason
    detail: str = ""


QUARANTINE_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def counts_by_reason(records: Iterable[Quarantined]) -> dict[str, int]:
    """How many rows each reason took, the most frequent first, equal counts by name."""
    counts = Counter(str(record.reason) for record in records)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def told_counts(counts: Mapping[str, int]) -> str:
    """Counts in words: what each one is of, and how many."""
    return ", ".join(f"{what} {count}" for what, count in counts.items())


def check_share(records: Sequence[Quarantined], rows: int, limit: float) -> None:
    """Raise ValueError when more than the share ``limit`` of ``rows`` was quarantined."""
    if len(records) > limit * rows:
        raise too_many(records, len(records), rows, limit)


def too_many(records: Sequence[Quarantined], failed: int, rows: int, limit: float) -> ValueError:
    """The error for ``failed`` of ``rows`` rows; ``records`` tells which and why."""
    reasons = told_counts(counts_by_reason(records))
    return ValueError(
        f"{failed} of {rows} rows ({failed / rows:.1%}) cannot be used, more than max_quarantined_share={limit:g} "
        f"allows: {reasons}; the first is row {records[0].row} of {records[0].file}"
    )


class Quarantine:
    """The quarantine of one job: what the plan left out, and what turned out unreadable on the way."""

    def __init__(self, planned: Iterable[Quarantined], *, limit: float) -> None:
        self._planned = list(planned)
        self._found: dict[str, Quarantined] = {}
        self._limit = limit
        self._read = self._failed = 0

    def add(self, records: Sequence[Quarantined], *, rows_read: int) -> None:
        """Note ``rows_read`` more rows, of which ``records`` failed; a pair that fails in every epoch is kept once.

        Raises ValueError when the share of failures among the rows read so far is above the limit by more than chance
        explains (three standard deviations), so that neither a few early failures stop a job nor a broken set runs on.
        """
        self._read += rows_read
        self._failed += len(records)
        for record in records:
            self._found.setdefault(record.pair_id, record)
        expected = self._limit * self._read
        if self._failed > expected + 3 * math.sqrt(expected):
            raise too_many(list(self._found.values()), self._failed, self._read, self._limit)

    @property
    def records(self) -> list[Quarantined]:
        return [*self._planned, *self._found.values()]

    def write(self, path: str | Path) -> None:
        write_quarantine(path, self.records)


def write_quarantine(path: str | Path, records: Sequence[Quarantined]) -> None:
    """Write ``records`` as parquet, in one piece: a reader sees the old file or the whole new one."""
    with writing(path) as local:
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema=QUARANTINE_SCHEMA), local)


def read_quarantine(path: str | Path) -> list[Quarantined]:
    """The records that `write_quarantine` wrote."""
    with open_parquet(str(path)) as parquet:
        rows = parquet.read(columns=QUARANTINE_SCHEMA.names).to_pylist()
    return [Quarantined(**{**row, "reason": Reason(row["reason"])}) for row in rows]
