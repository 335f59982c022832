"""Pairs whose images are told apart by their colour alone."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpo_core.data.schema import SCHEMA


def plain(colour: tuple[int, int, int], side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def colour_pairs(
    folder: Path, count: int, *, group: int = 2, labels: list[float] | None = None, side: int = 32
) -> Path:
    """``count`` pairs; image ``s`` of pair i is of colour (8 i, 8 i + 4, 100 s). Image 0 wins in the even ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        label = labels[i] if labels is not None else float(i % 2 == 0)
        rows.append(
            dict.fromkeys(SCHEMA.names)
            | {"caption": f"prompt {{number}} {i}", "ranking_id": i, "has_label": True, "model_0": "some model"}
            | {f"jpg_{image}": plain((8 * i, 8 * i + 4, 100 * image), side) for image in (0, 1)}
            | {"label_0": label, "label_1": 1 - label}
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "pairs.parquet", row_group_size=group)
    return folder


def named(i: int, image: int) -> str:
    """What the test server calls that image."""
    return f"{2 * i}-{2 * i + 1}-{25 * image} square"
