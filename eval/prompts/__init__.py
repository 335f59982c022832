"""Prompt sets: those of this package (origins in SOURCES.md), those of the hub, and anybody's files."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from eval.prompts.files import SUFFIXES, is_text_set, normalized, read_prompts
from eval.prompts.hub import HUB_SETS, fetch, is_hub_id

FOLDER = Path(__file__).parent
DEV_SHARE = 3
"""One prompt in so many is for choosing (checkpoints, settings), the others for reporting."""

Split = Literal["all", "dev", "report"]


@dataclass(frozen=True)
class Prompt:
    """One prompt and its place: ``index`` counts from 0 in the whole set, whatever part of it was asked for.

    The index names it, never the text: HPDv2 has 28 texts twice.
    """

    index: int
    text: str
    tags: dict[str, str] = field(default_factory=dict)
    """Groups the set's file puts it in, e.g. ``{"category": "Animals"}``."""
    set: str = ""
    """Label of the set, as in tables and in ``prompt_set`` of a manifest."""


def prompt_sets() -> list[str]:
    """The names of the sets that come with this package."""
    return sorted(file.stem for file in FOLDER.iterdir() if file.suffix in SUFFIXES)


def load_prompts(name: str, limit: int | None = None) -> list[str]:
    """The texts of :func:`load_prompt_set`."""
    return [prompt.text for prompt in load_prompt_set(name, limit)]


def load_prompt_set(name: str, limit: int | None = None, split: Split = "all") -> list[Prompt]:
    """The prompts of a set of this package or of the hub, of a file, or of a folder of files (a category each).

    ``name`` is one of :func:`prompt_sets`; one of ``HUB_SETS``; a .txt (one a line), .jsonl, .json, .tsv, .csv or
    .parquet file; a folder of these; or a hub dataset ``owner/name``, ``owner/name@split`` or ``owner/name:file``.
    Files with columns have the text under ``prompt``, ``caption`` or ``text``. ``split`` takes the third that is for
    choosing (``dev``) or the rest (``report``), by a hash of the text, so a text is on one side in every set.
    ``limit`` takes a fixed random part, in file order (files are sorted by category, so the first ones would be of one
    kind); a smaller limit is part of a larger one. Raises ValueError for an unknown set, an empty one, or a limit
    below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit of prompts is {limit}; allowed: 1 or more, or null for all")
    files, label = _find(name), set_label(name)
    read = (row for file in files for row in read_prompts(file, by_file=len(files) > 1))
    prompts = [Prompt(i, text, tags, label) for i, (text, tags) in enumerate(read) if text.strip()]
    if split != "all":
        prompts = [prompt for prompt in prompts if split_of(prompt.text) == split]
    if not prompts:
        where = ", ".join(map(str, files))
        raise ValueError(f"prompt set {name!r}{f' (split {split})' if split != 'all' else ''} is empty ({where})")
    if limit is None or limit >= len(prompts):
        return prompts
    chosen = np.random.default_rng(0).permutation(len(prompts))[:limit]
    return [prompts[i] for i in sorted(chosen)]


def set_label(name: str) -> str:
    """What a set is called in tables: its name, the stem of its file, or its hub id."""
    return Path(name).stem if Path(name).suffix in SUFFIXES and ":" not in name else name.rstrip("/")


def split_of(text: str) -> Literal["dev", "report"]:
    """The side of a prompt, by its normalised text alone."""
    digest = hashlib.sha256(normalized(text).encode()).digest()
    return "dev" if digest[0] % DEV_SHARE == 0 else "report"


def _find(name: str) -> list[Path]:
    if name in prompt_sets():
        return [next(FOLDER / (name + suffix) for suffix in SUFFIXES if (FOLDER / (name + suffix)).is_file())]
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if is_text_set(file))
        if not files:
            raise ValueError(f"no prompt files in {name!r}; allowed: files ending in {', '.join(SUFFIXES)}")
        return files
    if path.is_file() and path.suffix in SUFFIXES:
        return [path]
    if name in HUB_SETS or is_hub_id(name):
        return fetch(name)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"unknown prompt set {name!r}; allowed: {', '.join([*prompt_sets(), *HUB_SETS])}, "
            f"a hub dataset 'owner/name', or a file ending in {', '.join(SUFFIXES)}"
        )
    raise ValueError(f"no prompt file {name!r}")
