"""Prompt sets: one file each, their origin in SOURCES.md."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
SUFFIXES = (".txt", ".jsonl", ".tsv", ".parquet")
TEXT_COLUMNS = ("prompt", "Prompt", "caption", "text")
TAG_COLUMNS = {"Category": "category", "Challenge": "challenge", "category": "category", "tag": "task"}


@dataclass(frozen=True)
class Prompt:
    """One prompt and its place: ``index`` counts from 0 in the whole set, whatever part of it was asked for."""

    index: int
    text: str
    tags: dict[str, str] = field(default_factory=dict)
    """Groups the set's file puts it in, e.g. ``{"category": "Animals"}``."""


def prompt_sets() -> list[str]:
    """The names that :func:`load_prompts` knows."""
    return sorted(file.stem for file in FOLDER.iterdir() if file.suffix in SUFFIXES)


def load_prompts(name: str, limit: int | None = None) -> list[str]:
    """The texts of :func:`load_prompt_set`."""
    return [prompt.text for prompt in load_prompt_set(name, limit)]


def load_prompt_set(name: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of a set of this package, or of a .txt (one a line), .jsonl, .tsv or .parquet file.

    Files with columns have the text under ``prompt``, ``caption`` or ``text``. ``limit`` takes a fixed random part, in
    file order (files are sorted by category, so the first ones would be of one kind); a smaller limit is part of a
    larger one. Raises ValueError for an unknown set, an empty one, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit of prompts is {limit}; allowed: 1 or more, or null for all")
    file = _find(name)
    prompts = [Prompt(i, text, tags) for i, (text, tags) in enumerate(_read(file)) if text.strip()]
    if not prompts:
        raise ValueError(f"prompt set {name!r} is empty ({file})")
    if limit is None or limit >= len(prompts):
        return prompts
    chosen = np.random.default_rng(0).permutation(len(prompts))[:limit]
    return [prompts[i] for i in sorted(chosen)]


def _find(name: str) -> Path:
    if name in prompt_sets():
        return next(FOLDER / (name + suffix) for suffix in SUFFIXES if (FOLDER / (name + suffix)).is_file())
    path = Path(name)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"unknown prompt set {name!r}; allowed: {', '.join(prompt_sets())}, "
            f"or a file ending in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise ValueError(f"no prompt file {name!r}")
    return path


def _read(file: Path) -> Iterable[tuple[str, dict[str, str]]]:
    if file.suffix == ".txt":
        return [(line.strip(), {}) for line in file.read_text("utf-8").splitlines()]
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        names = [name for name in pq.read_schema(file).names if name in (*TEXT_COLUMNS, *TAG_COLUMNS)]
        return [_row(row, file) for row in pq.read_table(file, columns=names).to_pylist()]
    text = file.read_text("utf-8")
    if file.suffix == ".jsonl":
        return [_row(json.loads(line), file) for line in text.splitlines() if line.strip()]
    # PartiPrompts has prompts that begin with a quotation mark: with csv's usual quoting they would lose it.
    return [_row(row, file) for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)]


def _row(row: dict[str, Any], file: Path) -> tuple[str, dict[str, str]]:
    column = next((name for name in TEXT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"{file}: a row has no prompt; its columns are {', '.join(row) or 'none'}, "
            f"allowed: {', '.join(TEXT_COLUMNS)}"
        )
    return str(row[column]).strip(), {tag: str(row[name]) for name, tag in TAG_COLUMNS.items() if row.get(name)}
