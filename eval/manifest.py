"""manifest.parquet: what was drawn, one row per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def write_manifest(
    rows: Sequence[Mapping[str, Any]], out_dir: str | Path, blank: Mapping[str, bool] | None = None
) -> Path:
    """``manifest.parquet`` in ``out_dir`` (:func:`eval.generate.plan_images` lists the columns), with a flag for images
    of one single colour: a failed or censored generation. ``blank`` tells it by file where it is known already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole = pa.string(), pa.int64()
    schema = pa.schema(
        {
            "model": text,
            "prompt_set": text,
            "prompt": text,
            "prompt_index": whole,
            "seed": whole,
            "file": text,
            "blank": pa.bool_(),
            "weights": text,
            "scheduler": text,
            "num_inference_steps": whole,
            "guidance_scale": pa.float64(),
            "negative_prompt": text,
            "height": whole,
            "width": whole,
            "batch_size": whole,
            "dtype": text,
        }
    )
    path = Path(out_dir) / "manifest.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = blank or {}
    flagged = [
        {**row, "blank": known[row["file"]] if row["file"] in known else is_blank(path.parent / row["file"])}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(flagged, schema=schema), path)
    return path


def is_blank(file: Path) -> bool | None:
    """Is the whole image one colour? None if there is no such file yet."""
    if not file.is_file():
        return None
    with Image.open(file) as image:
        extrema: Any = image.convert("RGB").getextrema()
    return all(low == high for low, high in extrema)
