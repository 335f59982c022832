"""Tiny preference sets for tests: coloured noise as JPEGs in the Pick-a-Pic schema."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpo_core.data.schema import CAPTION_PER_IMAGE, SCHEMA


def jpeg(seed: int, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def make_pairs(
    folder: str | Path, pairs: int, *, side: int = 32, shards: int = 2, group: int = 4, grid: int | None = None
) -> Path:
    """``pairs`` decided pairs in ``shards`` files of row groups with ``group`` rows.

    With ``grid`` each image has a caption of its own as well, and a patch quality map of grid x grid values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(pairs):
        row = dict.fromkeys(SCHEMA.names)
        row |= {"caption": f"picture {i % 5}", "ranking_id": i, "has_label": True}
        row |= {"jpg_0": jpeg(2 * i, side), "jpg_1": jpeg(2 * i + 1, side)}
        row |= {"label_0": float(i % 2), "label_1": float(1 - i % 2)}
        if grid is not None:
            row |= {f"caption_{side}": f"picture {i % 5} as image {side} shows it" for side in (0, 1)}
            maps = np.random.default_rng(i).random((2, grid, grid))
            row |= {f"patch_quality_{side}": maps[side].tolist() for side in (0, 1)}
        rows.append(row)
    schema = SCHEMA
    if grid is not None:
        extra = [(name, pa.string()) for name in CAPTION_PER_IMAGE]
        extra += [(f"patch_quality_{side}", pa.list_(pa.list_(pa.float64()))) for side in (0, 1)]
        schema = pa.schema([*SCHEMA, *map(pa.field, *zip(*extra, strict=True))])
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards], schema=schema)
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=group)
    return folder
