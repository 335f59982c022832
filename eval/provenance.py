"""What a model folder tells about its training: on which captions, labelled by whom, picked by whom."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.models import PROVENANCE
from eval.section import Record

JOB_FILE = "job.json"
LABELLED_BY, PICKED_BY = "labelled_by", "picked_by"
TRAINED_FROM = ("base_model", "base_denoiser")


@dataclass(frozen=True)
class Training(Record):
    """Facts of one model's training; empty where its folder tells nothing."""

    data: list[str] = field(default_factory=list)
    """Folders and files of the training data."""
    labelled_by: list[str] = field(default_factory=list)
    """Scorers that decided which image was chosen."""
    picked_by: list[str] = field(default_factory=list)
    """Scorers that decided which checkpoint or trial was kept."""


def training_of(*folders: str | Path) -> Training:
    """Read ``provenance.json`` of a model's parts and of those it was trained from, and ``job.json`` beside their data.

    What an earlier stage was trained by stays in the weights: a run that goes on from an SFT model, or a LoRA that lies
    on a tuned one, has the judges of both.
    """
    waiting, facts = [Path(folder) for folder in folders], dict[Path, dict[str, Any]]()
    while waiting:
        place = waiting.pop(0)
        place = (place.parent if place.is_file() else place).absolute()
        if place not in facts:
            facts[place] = told = _read(place / PROVENANCE)
            waiting += [Path(str(told[key])) for key in TRAINED_FROM if told.get(key)]
    data = list(dict.fromkeys(str(path) for told in facts.values() for path in _paths(told)))
    jobs = [job for path in data for job in _jobs(Path(path))]
    return Training(
        data,
        sorted(set(_named(LABELLED_BY, [*facts.values(), *jobs]))),
        sorted(set(_named(PICKED_BY, list(facts.values())))),
    )


def _paths(facts: dict[str, Any]) -> list[str]:
    return facts.get("config", {}).get("data", {}).get("paths", [])


def _jobs(place: Path) -> list[dict[str, Any]]:
    folder = place if place.is_dir() else place.parent
    return [job for name in (JOB_FILE, "cache.json") if (job := _read(folder / name))]


def _read(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _named(key: str, things: Iterable[Any]) -> Iterator[str]:
    """The texts under ``key``, however deep: a text, a list of them, or an object with ``kind`` or ``name``."""
    for thing in things:
        if isinstance(thing, dict):
            for name, value in thing.items():
                if name == key or name.endswith(f".{key}"):
                    yield from _texts(value)
                elif isinstance(value, dict | list):
                    yield from _named(key, [value])
        elif isinstance(thing, list):
            yield from _named(key, thing)


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            item = item.get("name") or item.get("kind")
        if item:
            yield str(item)
