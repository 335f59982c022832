"""Tiny preference sets for tests: coloured noise as JPEGs in the Pick-a-Pic schema."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpo_core.data.schema import SCHEMA


def jpeg(seed: int, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def make_pairs(folder: str | Path, pairs: int, *, side: int = 32, shards: int = 2, group: int = 4) -> Path:
    """``pairs`` decided pairs in ``shards`` files of row groups with ``group`` rows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(pairs):
        row = dict.fromkeys(SCHEMA.names)
        row |= {"caption": f"picture {i % 5}", "ranking_id": i, "has_label": True}
        row |= {"jpg_0": jpeg(2 * i, side), "jpg_1": jpeg(2 * i + 1, side)}
        row |= {"label_0": float(i % 2), "label_1": float(1 - i % 2)}
        rows.append(row)
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards], schema=SCHEMA)
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=group)
    return folder
