"""Which images a report shows, and how they get into the page."""

import base64
import io
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.comparison import Comparison
from eval.pairing import PromptKey
from eval.scorers.base import rgb

SMALL = 128
"""Images up to this size are shown pixel by pixel."""
SHOWN = 288
"""Longest side of an inlined copy of a larger image, in pixels."""
SAMPLE, EXTREMES = 24, 12
"""Prompts drawn at random, and prompts at either extreme of each model."""
BUDGET = 3_600_000
"""Characters that the images of a page may take; what does not fit is left out, evenly from all grids."""


ImageKey = tuple[str, int, int]
"""(prompt set, index of the prompt in it, seed)."""


@dataclass(frozen=True)
class Cell:
    """One image in a grid. ``mark``: True or False for a share, a number else, None where no score applies."""

    model: str
    uri: str
    alt: str
    mark: bool | float | None


@dataclass(frozen=True)
class Row:
    """One prompt, drawn by every model. ``gain``: of the grid's model over the baseline, positive is better."""

    prompt_set: str
    prompt: str
    index: int
    seed: int
    gain: float | None
    cells: list[Cell]


@dataclass(frozen=True)
class Grid:
    """``kind``: sample, best or worst; ``model``: whose gain it is sorted by."""

    title: str
    explanation: str
    kind: str
    model: str
    rows: list[Row]


def galleries(comparison: Comparison, out_dir: str | Path) -> list[Grid]:
    """A seeded random sample, then for every model the largest gains and losses against the baseline, sorted.

    Gains are on the headline metric, of a prompt's first seed. Rows are dropped evenly when the page would get too big.
    """
    headline = comparison.headline
    rivals = [name for name in comparison.models if name != comparison.baseline]
    table: dict[str, dict[ImageKey, dict[str, Any]]] = {name: {} for name in comparison.models}
    for row in comparison.scores:
        if (row["scorer"], row["column"]) == (headline.scorer, headline.column):
            label = row.get("prompt_set") or comparison.main_set
            table[row["model"]][label, row["prompt_index"], row["seed"]] = row
    first: dict[PromptKey, int] = {}
    for label, index, seed in sorted(table[rivals[0]]):
        first.setdefault((label, index), seed)
    sign = 1 if headline.higher_is_better else -1
    gains = {
        name: {
            key: sign * (table[name][*key, seed]["score"] - table[comparison.baseline][*key, seed]["score"])
            for key, seed in first.items()
        }
        for name in rivals
    }
    keys = sorted(first)
    shuffled = [keys[i] for i in np.random.default_rng(0).permutation(len(keys))]
    chosen = [
        (
            "A random sample",
            f"{min(SAMPLE, len(keys))} of {len(keys)} prompts, drawn by a fixed rule before looking. "
            "In a row all models start from the same noise.",
            "sample",
            rivals[0],
            sorted(shuffled[:SAMPLE]),
        )
    ]
    for name in rivals:
        mine = {key: gain for key, gain in gains[name].items() if gain != 0 and not np.isnan(gain)}
        up = sorted((key for key in shuffled if mine.get(key, 0) > 0), key=lambda key: -mine[key])[:EXTREMES]
        down = sorted((key for key in shuffled if mine.get(key, 0) < 0), key=lambda key: mine[key])[:EXTREMES]
        whose = f" by {name}" if len(rivals) > 1 else ""
        by = f"{headline.column} of {name} minus {comparison.baseline}"
        note = "equal ones are drawn at random. Picked by score, so these"
        chosen += [
            (f"Most improved{whose}", f"The largest gains in {by}; {note} flatter.", "best", name, up),
            (f"Most worsened{whose}", f"The largest losses in {by}; {note} disparage.", "worst", name, down),
        ]
    room, uris = BUDGET, dict[str, str]()
    kept: list[list[Row]] = [[] for _ in chosen]
    for turn in zip_longest(*(picked for *_, picked in chosen)):
        for place, key in enumerate(turn):
            if key is not None and room > 0:
                gain = gains[chosen[place][3]][key]
                row = _row(comparison, table, key, first[key], gain, Path(out_dir), uris)
                room -= sum(len(cell.uri) for cell in row.cells)
                kept[place].append(row)
    return [
        Grid(title, explanation, kind, name, rows)
        for (title, explanation, kind, name, _), rows in zip(chosen, kept, strict=True)
    ]


def _row(
    comparison: Comparison,
    table: dict[str, dict[ImageKey, dict[str, Any]]],
    key: PromptKey,
    seed: int,
    gain: float,
    out_dir: Path,
    uris: dict[str, str],
) -> Row:
    cells, prompt = [], ""
    for name in comparison.models:
        scored = table[name][*key, seed]
        score, prompt, file = scored["score"], scored["prompt"], scored["file"]
        mark = None if np.isnan(score) else (bool(score) if comparison.headline.is_share else float(score))
        uris[file] = uris.get(file) or data_uri(out_dir / file)
        cells.append(Cell(name, uris[file], f"{name}: {prompt}", mark))
    return Row(key[0], prompt, key[1], seed, None if np.isnan(gain) else gain, cells)


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
