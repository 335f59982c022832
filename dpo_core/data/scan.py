"""Reads labels, captions and ids of a data set, never its images, and judges every row."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_core.data import files, locations, schema
from dpo_core.data.quarantine import RowRejected

REMOTE_FILES_AT_ONCE = 16

Verdict = int | None | RowRejected
"""The side that was chosen (0 or 1), None for a tie, or why the row cannot be used."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One parquet row group: ``first_row`` is the row of the file it starts at."""

    file: str
    index: int
    first_row: int


@dataclass
class Scan:
    """Every row group of a data set with a verdict and an id for each of its rows."""

    groups: list[RowGroup] = field(default_factory=list)
    verdicts: list[list[Verdict]] = field(default_factory=list)
    pair_ids: list[str] = field(default_factory=list)


def scan_rows(found: list[str], *, per_image_captions: bool, quality: bool = False) -> Scan:
    """Judge every row of the files ``found``. Raises ValueError for missing columns and damaged files."""
    scan = Scan()
    rankings: list[NDArray[np.int64]] = []

    def judge(file: str) -> list[tuple[RowGroup, list[Verdict], NDArray[np.int64]]]:
        return [
            (group, _judge(table, per_image_captions), _ranking_ids(table))
            for group, table in _cheap_columns(file, per_image_captions, quality)
        ]

    # From afar most of the time is waiting; here it is the interpreter's, which threads would only share.
    threads = REMOTE_FILES_AT_ONCE if any(map(locations.is_url, found)) else 1
    with ThreadPoolExecutor(threads) as pool:
        for groups in pool.map(judge, found):
            for group, verdicts, ids in groups:
                scan.groups.append(group)
                scan.verdicts.append(verdicts)
                rankings.append(ids)
    scan.pair_ids = _pair_ids(scan.groups, [len(rows) for rows in scan.verdicts], rankings, found)
    return scan


def _cheap_columns(file: str, per_image_captions: bool, quality: bool) -> Iterator[tuple[RowGroup, pa.Table]]:
    captions = schema.caption_columns(per_image_captions)
    columns = (*captions, *schema.LABELS, "has_label", "ranking_id")
    first_row = 0
    with files.open_parquet(file) as parquet:
        schema.check_columns(parquet.schema_arrow, file, per_image=per_image_captions, quality=quality)
        for index in range(parquet.num_row_groups):
            table = files.read_row_group(parquet, file, index, columns)
            yield RowGroup(file, index, first_row), table
            first_row += len(table)


def _judge(table: pa.Table, per_image_captions: bool) -> list[Verdict]:
    labels = [table.column(name).to_pylist() for name in schema.LABELS]
    has_label = table.column("has_label").to_pylist() if "has_label" in table.column_names else [True] * len(table)
    captions = [schema.read_texts(table.column(name)) for name in schema.caption_columns(per_image_captions)]
    return [_judge_row(*row) for row in zip(*labels, has_label, zip(*captions, strict=True), strict=True)]


def _judge_row(
    label_0: float | None, label_1: float | None, has_label: bool | None, captions: tuple[tuple[str, ...] | None, ...]
) -> Verdict:
    try:
        side = schema.chosen_side(label_0, label_1, has_label)
        for texts in captions:
            schema.clean_captions(texts)
    except RowRejected as rejected:
        return rejected
    return side


def _ranking_ids(table: pa.Table) -> NDArray[np.int64]:
    """The ranking ids, -1 where there is none."""
    if "ranking_id" not in table.column_names or not pa.types.is_integer(table.schema.field("ranking_id").type):
        return np.full(len(table), -1, dtype=np.int64)
    return table.column("ranking_id").cast(pa.int64()).fill_null(-1).to_numpy()


def _pair_ids(
    groups: list[RowGroup], counts: list[int], rankings: list[NDArray[np.int64]], found: list[str]
) -> list[str]:
    """Ranking ids where they are unique over the set; elsewhere the file's short name and the row in it."""
    every = np.concatenate(rankings) if rankings else np.empty(0, dtype=np.int64)
    values, occurrences = np.unique(every, return_counts=True)
    shared = set(values[(occurrences > 1) | (values < 0)].tolist())
    names = dict(zip(found, files.short_names(found), strict=True))
    origins = (
        (names[group.file], group.first_row + row)
        for group, count in zip(groups, counts, strict=True)
        for row in range(count)
    )
    return [
        f"{name}#{row}" if ranking in shared else str(ranking)
        for ranking, (name, row) in zip(every.tolist(), origins, strict=True)
    ]
