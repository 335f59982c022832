"""Scores of finished pieces of a comparison, kept so that an interrupted one goes on where it was."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.score import SCHEMA, score_images
from eval.scorers.base import ScoreFunction, Scorer

FOLDER = "parts"


def score_missing(
    rows: Sequence[dict[str, Any]],
    out_dir: str | Path,
    scorer: Scorer,
    load: Callable[[], ScoreFunction],
    *,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """The score rows of manifest ``rows`` by one scorer, from ``parts/`` if they are there, else scored and put there.

    A part is named by its images (whose names hold weights and settings) and by what the scorer is, its weights' hash
    included; ``load`` is only called where something is missing. A part is complete or absent.
    """
    file = part_file(rows, out_dir, scorer)
    if file.is_file():
        return pq.read_table(file).to_pylist()
    scored = score_images(rows, out_dir, scorer, load(), batch_size=batch_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.part")
    pq.write_table(pa.Table.from_pylist(scored, schema=SCHEMA), aside)
    aside.replace(file)
    return scored


def part_file(rows: Sequence[dict[str, Any]], out_dir: str | Path, scorer: Scorer) -> Path:
    """Where the score rows of manifest ``rows`` by one scorer are kept."""
    identity = scorer.identity()
    named = [
        scorer.model_dump(mode="json"),
        repr(identity),
        [[row[name] for name in ("model", "prompt_index", "seed", "file", "weights", "prompt")] for row in rows],
        *([[row.get("references") for row in rows]] if scorer.needs_references else []),
    ]
    name = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:20]
    return Path(out_dir) / FOLDER / f"{name}.parquet"
