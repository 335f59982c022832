"""Manifest and scorers -> scores: one row per image and column of a scorer. Nothing is averaged here."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eval.scorers.base import ScoreFunction, Scorer, rgb

SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "prompt_set": pa.string(),
        "prompt": pa.string(),
        "prompt_index": pa.int64(),
        "seed": pa.int64(),
        "file": pa.string(),
        "blank": pa.bool_(),
        "scorer": pa.string(),
        "column": pa.string(),
        "score": pa.float64(),
        "variant": pa.string(),
        "scorer_weights": pa.string(),
        "preprocessing": pa.string(),
        "scorer_dtype": pa.string(),
        "scale": pa.string(),
    }
)


def score_images(
    rows: Sequence[dict[str, Any]], folder: str | Path, scorer: Scorer, score: ScoreFunction, *, batch_size: int = 16
) -> list[dict[str, Any]]:
    """Score the images of manifest ``rows`` (their files lie under ``folder``) with the loaded ``scorer``.

    ``blank`` marks an image of one single colour: a failed or censored generation, which gets scores all the same.
    A score that does not apply to an image is NaN. For a scorer that needs references, every row has ``references``:
    the reference images' files, under ``folder`` or absolute. With each score goes what the number is
    (:class:`eval.scorers.base.Identity`). Raises ValueError if the scorer returns something else than its columns or
    an infinite value, if an image cannot be read, or if references are needed and missing.
    """
    scored = []
    identity = scorer.identity()
    made_by = {
        "variant": identity.variant,
        "scorer_weights": identity.weights,
        "preprocessing": identity.preprocessing,
        "scorer_dtype": identity.dtype,
        "scale": identity.scale,
    }
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = [_open(Path(folder) / row["file"]) for row in batch]
        given: list[Any] = [images, [row["prompt"] for row in batch]]
        if scorer.needs_references:
            given.append(_references(batch, folder, scorer))
        results = score(*given)
        for row, image, result in zip(batch, images, results, strict=True):
            bad = [name for name, value in result.items() if math.isinf(value)]
            if set(result) != set(scorer.columns) or bad:
                raise ValueError(
                    f"scorer {scorer.label!r} gave {result} for {row['file']}; allowed: finite numbers or "
                    f"NaN for {', '.join(scorer.columns)}"
                )
            kept = {name: row.get(name) for name in ("model", "prompt_set", "prompt", "prompt_index", "seed", "file")}
            extrema: Any = image.getextrema()
            kept["blank"] = all(low == high for low, high in extrema)
            scored += [
                {**kept, "scorer": scorer.label, "column": column, "score": float(value), **made_by}
                for column, value in result.items()
            ]
    return scored


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(file)!r} cannot be read: {error}") from error


def _references(rows: Sequence[dict[str, Any]], folder: str | Path, scorer: Scorer) -> list[list[Image.Image]]:
    without = [row["file"] for row in rows if not row.get("references")]
    if without:
        raise ValueError(f"scorer {scorer.label!r} compares with reference images; {without[0]} has none")
    opened = {name: _open(Path(folder) / name) for row in rows for name in row["references"]}
    return [[opened[name] for name in row["references"]] for row in rows]


def write_scores(scored: Sequence[dict[str, Any]], out_dir: str | Path) -> Path:
    """``scores.parquet`` in ``out_dir``."""
    path = Path(out_dir) / "scores.parquet"
    pq.write_table(pa.Table.from_pylist(list(scored), schema=SCHEMA), path)
    return path


def score_folder(out_dir: str | Path, scorers: Sequence[Scorer], *, device: str = "cpu") -> Path:
    """Score the images of ``out_dir/manifest.parquet`` with every scorer; returns ``out_dir/scores.parquet``."""
    rows = pq.read_table(Path(out_dir) / "manifest.parquet").to_pylist()
    scored = [row for scorer in scorers for row in score_images(rows, out_dir, scorer, scorer.load(device))]
    return write_scores(scored, out_dir)
