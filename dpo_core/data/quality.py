"""Patch quality maps (PatchDPO, arXiv 2412.03177): how good each patch of an image is, on the latent grid."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpo_core.data import files, schema
from dpo_core.data.quarantine import Reason, RowRejected
from dpo_core.data.scan import RowGroup


def quality_shape(groups: list[RowGroup]) -> tuple[int, int]:
    """(h, w) of the first map of the set that is one; all others must have it. Raises ValueError when there is none."""
    for group in groups:
        with files.open_parquet(group.file) as parquet:
            table = files.read_row_group(parquet, group.file, group.index, schema.QUALITY)
        for name in schema.QUALITY:
            for value in table.column(name):
                try:
                    return _read_map(value.as_py(), name).shape
                except RowRejected:
                    continue
    raise ValueError(f"data.quality: not one row has a patch quality map in {' or '.join(schema.QUALITY)}")


def read_quality(row: pa.Table, chosen_side: int, shape: tuple[int, int] | None) -> NDArray[np.float32]:
    """Chosen and rejected map of a row, float32 ``[2, h, w]``.

    Raises RowRejected for a missing map, one that is no grid of finite numbers, and one of another shape.
    """
    maps = []
    for name in (schema.QUALITY[chosen_side], schema.QUALITY[1 - chosen_side]):
        values = _read_map(row.column(name)[0].as_py(), name)
        if values.shape != shape:
            detail = f"{name} is {_sides(values.shape)}, the first of the set {_sides(shape or ())}"
            raise RowRejected(Reason.QUALITY_MALFORMED, detail)
        maps.append(values)
    return np.stack(maps)


def _read_map(rows: list[list[Any] | None] | None, name: str) -> NDArray[np.float32]:
    if not rows:
        raise RowRejected(Reason.QUALITY_MISSING, name)
    if any(not row or None in row or len(row) != len(rows[0] or ()) for row in rows):
        raise RowRejected(Reason.QUALITY_MALFORMED, f"{name} is no grid of numbers")
    values = np.array(rows, dtype=np.float32)
    if not np.isfinite(values).all():
        raise RowRejected(Reason.QUALITY_MALFORMED, f"{name} holds infinity or NaN")
    return values


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
