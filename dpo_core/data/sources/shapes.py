"""The embedded world: pictures of one or two coloured shapes, drawn from their captions.

A small closed world in which "does the picture show what the caption asks" has an exact answer. It stands in for a
public dataset wherever nothing can be downloaded: the embedded model was trained on it and its demo pairs come from it.
"""

import colorsys
import hashlib
import re
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Width and height of a drawing in pixels."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.82, 0.86),
    "green": (135.0, 0.72, 0.62),
    "blue": (224.0, 0.80, 0.86),
    "yellow": (50.0, 0.85, 0.93),
    "purple": (285.0, 0.68, 0.66),
}
"""Name -> hue in degrees, saturation, value; every drawing departs a little from these."""

SHAPES = ("circle", "square", "triangle")
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

HELDOUT_SCENES = 72
BORDER, GAP = 2.0, 3.0
SMALLEST, LARGEST = 14.0, 26.0
DARK, PALE = (0.08, 0.32), (0.62, 0.97)
SUPERSAMPLING = 4

CAPTION = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: ({'|'.join(RELATIONS)}) a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))?"
)


def captions(split: Literal["train", "heldout", "all"], singles: bool) -> list[str]:
    """The captions of a split in a fixed order: 576, 144 or 720 of two shapes, before them the 15 of one if asked.

    Captions of one shape belong to ``train`` and ``all``. The two colours of a caption always differ.
    """
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"unknown split {split!r}: it must be 'train', 'heldout' or 'all'")
    objects = [f"a {colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
    pairs = [text for text in _pairs() if split == "all" or (text in _heldout()) == (split == "heldout")]
    return (objects if singles and split != "heldout" else []) + pairs


def is_heldout(caption: str) -> bool:
    """Whether ``caption`` may never be trained on.

    Scenes are held out, not wordings: "a red circle above a blue square" and "a blue square below a red circle" show
    the same picture and share one fate. Held out are the 72 of 360 scenes with the smallest SHA-256.
    """
    return caption in _heldout()


def draw(caption: str, seed: int, *, like: str | None = None, spoiled: bool = False) -> NDArray[np.uint8]:
    """A picture of ``caption``, uint8 [64, 64, 3]; the same arguments always give the same picture.

    With ``like``, background, sizes and places are those of the picture of that caption with this seed, as far as
    ``caption`` allows, so that two pictures differ in what their captions say and in little else. A ``spoiled``
    picture has a bite taken out of a shape, or a thing too many. Raises ValueError for a caption outside the world.
    """
    first_colour, first_shape, relation, second_colour, second_shape = _parse(caption)
    digest = hashlib.sha256(f"{like or caption}|{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    canvas = np.empty((SIZE, SIZE, 3))
    value = rng.uniform(*(DARK if rng.uniform() < 1 / 3 else PALE))
    canvas[:] = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.12), value)
    sizes = rng.uniform(SMALLEST, LARGEST, 2)
    if relation:
        extents = [_extent(first_shape, sizes[0]), _extent(second_shape, sizes[1])]
        centres = _place(relation, extents, rng)
        _paint(canvas, second_shape, _colour(second_colour, rng), centres[1], extents[1])
    else:
        extents = [_extent(first_shape, sizes[0])]
        centres = [rng.uniform(BORDER + extents[0] / 2, SIZE - BORDER - extents[0] / 2)]
    _paint(canvas, first_shape, _colour(first_colour, rng), centres[0], extents[0])
    if spoiled:
        _spoil(canvas, centres, extents, rng)
    return np.round(canvas * 255).astype(np.uint8)


@cache
def _pairs() -> tuple[str, ...]:
    return tuple(
        f"a {first} {shape} {relation} a {second} {other}"
        for first, shape, relation, second, other in product(COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES)
        if first != second
    )


@cache
def _heldout() -> frozenset[str]:
    scenes = sorted(
        {min(text, _reversed(text)) for text in _pairs()}, key=lambda t: hashlib.sha256(t.encode()).digest()
    )
    return frozenset(text for scene in scenes[:HELDOUT_SCENES] for text in (scene, _reversed(scene)))


def _reversed(caption: str) -> str:
    colour, shape, relation, other_colour, other_shape = _parse(caption)
    return f"a {other_colour} {other_shape} {OPPOSITE[relation]} a {colour} {shape}"


def _parse(caption: str) -> tuple[str, str, str, str, str]:
    match = CAPTION.fullmatch(caption)
    if match is None or match[1] == match[4]:
        raise ValueError(
            f"no picture for the caption {caption!r}: it must read 'a <colour> <shape>' or "
            f"'a <colour> <shape> <relation> a <other colour> <shape>' with colours {', '.join(COLOURS)}; "
            f"shapes {', '.join(SHAPES)}; relations {', '.join(RELATIONS)}"
        )
    first_colour, first_shape, relation, second_colour, second_shape = (part or "" for part in match.groups())
    return first_colour, first_shape, relation, second_colour, second_shape


def _colour(name: str, rng: np.random.Generator) -> NDArray[np.float64]:
    hue, saturation, value = COLOURS[name] + rng.uniform(-1, 1, 3) * (7.0, 0.08, 0.07)
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))


def _extent(shape: str, size: float) -> NDArray[np.float64]:
    """Width and height in pixels; a triangle is equilateral."""
    return np.array([size, size * (np.sqrt(3) / 2 if shape == "triangle" else 1.0)])


def _place(relation: str, extents: list[NDArray[np.float64]], rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Centres (x, y) of both shapes: across the relation's axis at most half as far apart as along it."""
    along = 1 if relation in ("above", "below") else 0
    order = (0, 1) if relation in ("above", "left of") else (1, 0)
    near, far = extents[order[0]], extents[order[1]]
    slack = SIZE - 2 * BORDER - GAP - near[along] - far[along]
    extra = rng.uniform(0, slack)
    start = BORDER + rng.uniform(0, slack - extra)
    distance = near[along] / 2 + GAP + extra + far[along] / 2
    centres = [np.zeros(2), np.zeros(2)]
    centres[0][along] = start + near[along] / 2
    centres[1][along] = centres[0][along] + distance
    reach = BORDER + np.array([near[1 - along], far[1 - along]]) / 2
    centres[0][1 - along] = middle = rng.uniform(reach[0], SIZE - reach[0])
    centres[1][1 - along] = rng.uniform(
        max(reach[1], middle - distance / 2), min(SIZE - reach[1], middle + distance / 2)
    )
    return [centres[order[0]], centres[order[1]]]


def _spoil(canvas: NDArray, centres: list[NDArray], extents: list[NDArray], rng: np.random.Generator) -> None:
    """Bite a piece out of a shape, or add a small shape where there is most room."""
    if rng.uniform() < 0.5:
        which, angle = int(rng.integers(len(centres))), rng.uniform(0, 2 * np.pi)
        bite = extents[which] * rng.uniform(0.5, 0.7)
        middle = centres[which] + np.array([np.cos(angle), np.sin(angle)]) * extents[which] * 0.35
        middle = np.clip(middle, bite / 2 + 1, SIZE - 1 - bite / 2)
        _paint(canvas, "circle", canvas[0, 0].copy(), middle, bite)
        return
    places = rng.uniform(8, SIZE - 8, (40, 2))
    room = np.min([np.linalg.norm(places - centre, axis=1) - max(extents[0]) / 2 for centre in centres], axis=0)
    shape, colour = SHAPES[int(rng.integers(len(SHAPES)))], list(COLOURS)[int(rng.integers(len(COLOURS)))]
    _paint(canvas, shape, _colour(colour, rng), places[room.argmax()], _extent(shape, rng.uniform(9.0, 13.0)))


def _paint(canvas, shape: str, colour: NDArray, centre: NDArray[np.float64], extent: NDArray[np.float64]) -> None:
    low = np.floor(centre - extent / 2).astype(int)
    high = np.ceil(centre + extent / 2).astype(int)
    columns, rows = (
        (np.arange((high[i] - low[i]) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING + low[i] - centre[i] for i in (0, 1)
    )
    x, y = columns[None] * 2 / extent[0], rows[:, None] * 2 / extent[1]
    if shape == "circle":
        inside = x**2 + y**2 <= 1
    elif shape == "square":
        inside = (abs(x) <= 1) & (abs(y) <= 1)
    else:
        inside = (abs(x) <= (y + 1) / 2) & (y <= 1)
    fine = inside.reshape(high[1] - low[1], SUPERSAMPLING, high[0] - low[0], SUPERSAMPLING)
    coverage = fine.mean(axis=(1, 3))[..., None]
    patch = canvas[low[1] : high[1], low[0] : high[0]]
    patch[:] = patch * (1 - coverage) + colour * coverage
