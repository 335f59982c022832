"""Which images a report shows, and how they get into the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.comparison import Comparison, by_prompt
from eval.scorers.base import rgb

SMALL = 128
"""Images up to this size are shown pixel by pixel."""
SHOWN = 288
"""Longest side of an inlined copy of a larger image, in pixels."""
SAMPLE, EXTREMES, CELLS = 12, 6, 72
"""Prompts drawn at random, prompts at either extreme, and the most images of a report."""


@dataclass(frozen=True)
class Cell:
    """One image in a grid. ``mark``: True or False for a share, a number else, None where no score applies."""

    model: str
    uri: str
    alt: str
    mark: bool | float | None


@dataclass(frozen=True)
class Row:
    prompt: str
    seed: int
    delta: float | None
    cells: list[Cell]


def galleries(comparison: Comparison, out_dir: str | Path) -> list[tuple[str, str, list[Row]]]:
    """(title, explanation, rows) of each grid: a seeded random sample, then the largest gains and losses.

    Gains are those of the first model that is not the baseline, on the headline metric, of a prompt's first seed.
    """
    rival = next(name for name in comparison.models if name != comparison.baseline)
    headline = comparison.headline
    table: dict[str, dict[tuple[int, int], dict[str, Any]]] = {name: {} for name in comparison.models}
    for row in comparison.scores:
        if f"{row['scorer']}/{row['column']}" == headline.key:
            table[row["model"]][row["prompt_index"], row["seed"]] = row
    first_seed: dict[int, int] = {}
    for index, seed in sorted(table[rival]):
        first_seed.setdefault(index, seed)
    sign = 1 if headline.higher_is_better else -1
    gains = by_prompt(
        {
            (i, s): sign * (table[rival][i, s]["score"] - table[comparison.baseline][i, s]["score"])
            for i, s in first_seed.items()
        }
    )
    share = max(1, CELLS // len(comparison.models))
    shuffled = [int(i) for i in np.random.default_rng(0).permutation(sorted(first_seed))]
    sampled = sorted(shuffled[: min(SAMPLE, max(1, share // 2))])
    extremes = min(EXTREMES, max(1, share // 4))
    up = [i for i in sorted(shuffled, key=lambda i: -gains.get(i, 0.0)) if gains.get(i, 0.0) > 0][:extremes]
    down = [i for i in sorted(shuffled, key=lambda i: gains.get(i, 0.0)) if gains.get(i, 0.0) < 0][:extremes]

    def rows(indices: list[int]) -> list[Row]:
        return [_row(comparison, table, index, first_seed[index], gains.get(index), Path(out_dir)) for index in indices]

    by = f"{headline.column} of {rival} minus {comparison.baseline}"
    return [
        (
            "A random sample",
            f"{len(sampled)} of {len(first_seed)} prompts, drawn by a fixed rule before looking. "
            "In a row all models start from the same noise.",
            rows(sampled),
        ),
        (
            "Most improved",
            f"The largest gains in {by}; equal gains are drawn at random. Picked by score, so these flatter.",
            rows(up),
        ),
        ("Most worsened", f"The largest losses in {by}, by the same rule.", rows(down)),
    ]


def _row(
    comparison: Comparison,
    table: dict[str, dict[tuple[int, int], dict[str, Any]]],
    index: int,
    seed: int,
    gain: float | None,
    out_dir: Path,
) -> Row:
    cells, prompt = [], ""
    for name in comparison.models:
        scored = table[name][index, seed]
        score, prompt = scored["score"], scored["prompt"]
        mark = None if np.isnan(score) else (bool(score) if comparison.headline.is_share else float(score))
        cells.append(Cell(name, data_uri(out_dir / scored["file"]), f"{name}: {prompt}", mark))
    return Row(prompt, seed, gain, cells)


def data_uri(file: Path) -> str:
    """The image as text to put into a page: small ones exactly, larger ones as a reduced JPEG."""
    with Image.open(file) as opened:
        image = rgb(opened)
    stream = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(stream, "PNG", optimize=True)
    else:
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        image.save(stream, "JPEG", quality=82, optimize=True)
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
