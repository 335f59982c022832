"""The rules of GenEval: from the objects that a detector found to whether an image is as asked. No model, no pixels."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

METADATA = Path(__file__).parents[1] / "prompts" / "geneval.jsonl"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
CONFIDENCE, CONFIDENCE_OF_COUNTS = 0.3, 0.9
"""Least confidence of an object; a count asks for more, since a doubtful second detection would spoil it."""
MOST_OF_A_KIND = 16
SLACK = 0.1
"""Share of both objects' widths (heights) that their distance may be smaller than and still say nothing."""
GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
"""COCO's classes as detectors call them, and as GenEval does, where they differ."""


@dataclass(frozen=True)
class Thing:
    """One object that was found."""

    name: str
    """Its class, as GenEval calls it."""
    confidence: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels."""
    mask: Any = None
    """bool ``[height, width]`` of the image, or None."""


Colours = Callable[[Sequence[Thing], str], list[str]]
"""(objects, their name in GenEval) -> the colour of each."""


@lru_cache
def requirements() -> dict[str, dict[str, Any]]:
    """Prompt -> what an image of it must show."""
    rows = [json.loads(line) for line in METADATA.read_text("utf-8").splitlines() if line.strip()]
    return {row["prompt"]: row for row in rows}


def class_names(labels: Mapping[int, str]) -> dict[int, str]:
    """A detector's labels as GenEval calls them. Raises ValueError if it lacks a class that GenEval asks for."""
    names = {int(place): GENEVAL_NAMES.get(label, label) for place, label in labels.items()}
    asked = {wish["class"] for row in requirements().values() for wish in row["include"]}
    lacking = sorted(asked - set(names.values()))
    if lacking:
        raise ValueError(
            f"the detector does not know {', '.join(lacking[:5])} ({len(lacking)} of {len(asked)} classes)"
        )
    return names


def kept(things: Sequence[Thing], name: str, confidence: float) -> list[Thing]:
    """The objects of a class above ``confidence``, surest first, 16 at most."""
    sure = [thing for thing in things if thing.name == name and thing.confidence > confidence]
    return sorted(sure, key=lambda thing: -thing.confidence)[:MOST_OF_A_KIND]


def judge(things: Sequence[Thing], asked: Mapping[str, Any], colours: Colours) -> bool:
    """Does an image with these objects show what is asked?

    Every included class must be there as often as asked, the surest ones in the asked colour and at the asked side of
    those of an earlier class; no excluded class may reach its count. ``asked`` is a row of :func:`requirements`.
    """
    confidence = CONFIDENCE_OF_COUNTS if asked["tag"] == "counting" else CONFIDENCE
    groups: list[list[Thing] | None] = []
    for wish in asked.get("include", []):
        found = kept(things, wish["class"], confidence)[: wish["count"]]
        good = len(found) == wish["count"]
        if good and "color" in wish:
            good = colours(found, wish["class"]).count(wish["color"]) >= wish["count"]
        if good and "position" in wish:
            relation, other = wish["position"]
            targets = groups[other]
            good = targets is not None and all(relation in sides(a, b) for a in found for b in targets)
        groups.append(found if good else None)
    unwanted = any(len(kept(things, no["class"], confidence)) >= no["count"] for no in asked.get("exclude", []))
    return not unwanted and all(group is not None for group in groups)


def sides(first: Thing, second: Thing) -> set[str]:
    """Where ``first`` lies from ``second``: left of, right of, above, below; two for a diagonal, none for too close."""
    a, b = (np.array(thing.box, dtype=float).reshape(2, 2) for thing in (first, second))
    offset = a.mean(axis=0) - b.mean(axis=0)
    extent = abs(a[1] - a[0]) + abs(b[1] - b[0])
    clear = np.maximum(abs(offset) - SLACK * extent, 0) * np.sign(offset)
    if (abs(clear) < 1e-3).all():
        return set()
    x, y = clear / np.linalg.norm(offset)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}
