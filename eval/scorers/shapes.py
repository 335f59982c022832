"""Reads a picture of coloured shapes and says whether it shows what its caption asks.

For the world of the embedded model: one or two flat shapes on a plain background, captions such as "a red circle" or
"a red circle above a blue square". Only pixels are read, nothing is learned. Count, colour and relation are asked of
the objects found in the picture, as GenEval does (arXiv 2310.11513); here shape can be measured as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from eval.scorers.base import ScoreFunction, Scorer

HUES = {"red": 0.0, "yellow": 50.0, "green": 135.0, "blue": 224.0, "purple": 285.0}
HUE_TOLERANCE = 26.0
SHAPES = ("circle", "square", "triangle")
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
NAME = rf"a ({'|'.join(HUES)}) ({'|'.join(SHAPES)})"
CAPTION = re.compile(rf"{NAME}(?: ({'|'.join(RELATIONS)}) {NAME})?")

SIZE = 64
CONTRAST = 0.17
"""Euclidean RGB distance (channels 0..1) to the background from which a pixel belongs to something."""
SPECK = 12
"""Pixels; smaller things are noise, anything larger counts as an object."""
SATURATION = 0.3
"""(max - min) / max of a colour that has a name."""
QUALITY = 0.86
"""Least soft overlap (intersection over union) with the ideal shape. A square's with its inscribed circle is 0.79."""
EXTENT = (9.0, 34.0)
"""Smallest and largest width and height of a shape in pixels."""
UNEVEN, UNEVEN_BY = 0.12, 0.25
"""Largest share of a shape's inside that may be off its own colour, and the RGB distance from which it is off."""
ASPECT = 1.45
MARGIN = 8.0
"""Pixels by which centres must be apart; they must also be further apart along the relation than across it."""
MOST = 6
"""Things that are measured, the largest first; the others only count."""
STEPS = np.array([-0.6, 0.0, 0.6])
NUDGES = np.stack(np.meshgrid(STEPS, STEPS, STEPS, STEPS), axis=-1).reshape(-1, 4)
"""Moves of a bounding box's left, top, right and bottom edge that are tried, [81, 4]: edges fall between pixels."""
POINTED = np.array([1.0, 2.0, 1.0, 1.0])
TRIANGLE_NUDGES = NUDGES * POINTED + [-0.6, -1.6, 0.6, 0.0]
"""The thin corners of a triangle fade into the background, so its box is larger than what is seen of it."""
THINNEST = 0.1
"""Pixels that are left of a line's box whose edges were moved towards each other."""


@dataclass(frozen=True)
class Found:
    """One thing in a picture: centre and extent in pixels of a 64-pixel picture; None where no name fits."""

    colour: str | None
    shape: str | None
    quality: float
    x: float
    y: float
    width: float
    height: float


class Shapes(Scorer):
    """Whether a picture of the embedded model's world shows what its prompt asks; see ``check``."""

    kind: Literal["shapes"] = "shapes"

    columns: ClassVar[dict[str, str]] = {
        "correct": "1 if number, colours, shapes and relation are all as asked, else 0",
        "score": "mean of the parts, 0 to 1; colour and shape earn the share of objects that have them",
        "count": "1 if the picture holds as many things as asked, else 0",
        "colour": "1 if every asked object has its colour, else 0",
        "shape": "1 if every asked object has its shape, else 0",
        "relation": "1 if the first object lies where asked from the second, else 0; NaN for one object",
        "quality": "mean overlap of the asked objects with ideal shapes, 0 to 1",
    }
    primary: ClassVar[str] = "correct"

    def load(self, device: str | torch.device = "cpu") -> ScoreFunction:
        """Nothing is read; the check always runs on the CPU. Prompts outside the world are a ValueError."""
        del device

        def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[dict[str, float]]:
            return [check(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

        return score

    def tags(self, prompt: str) -> dict[str, str]:
        """The relation asked for, ``none`` for a single object."""
        return {"relation": parse(prompt)[1] or "none"}


def check(image: Image.Image | NDArray[np.uint8], caption: str) -> dict[str, float]:
    """How well ``image`` (RGB, any size; uint8 [H, W, 3] if an array) shows ``caption``.

    - ``count``: 1 if it holds as many things as asked, else 0;
    - ``colour``, ``shape``: 1 if every asked object has the colour, the shape it should have, else 0;
    - ``relation``: 1 if the first lies where it should from the second, else 0; NaN when one object is asked;
    - ``correct``: 1 if all of these are 1, else 0;
    - ``score``: their mean in 0..1, where colour and shape earn the share of objects that have them;
    - ``quality``: mean overlap of the asked objects with ideal shapes, 0..1, 0 for one that is missing.

    Raises ValueError for a caption that is not of this world.
    """
    asked, relation = parse(caption)
    found = find(image)
    best = max(_assignments(found, len(asked)), key=lambda things: _credit(asked, relation, things))
    colours = [thing is not None and thing.colour == colour for thing, (colour, _) in zip(best, asked, strict=True)]
    shapes = [thing is not None and thing.shape == shape for thing, (_, shape) in zip(best, asked, strict=True)]
    count = float(len(found) == len(asked))
    related = float(_related(best, relation)) if relation else float("nan")
    parts = [count, float(np.mean(colours)), float(np.mean(shapes))] + ([related] if relation else [])
    return {
        "correct": float(min(parts) == 1.0),
        "score": float(np.mean(parts)),
        "count": count,
        "colour": float(all(colours)),
        "shape": float(all(shapes)),
        "relation": related,
        "quality": float(np.mean([thing.quality if thing else 0.0 for thing in best])),
    }


def parse(caption: str) -> tuple[list[tuple[str, str]], str | None]:
    """The asked (colour, shape) objects and the relation of the first to the second, None when one is asked."""
    match = CAPTION.fullmatch(caption.strip().lower().rstrip("."))
    if match is None:
        raise ValueError(
            f"cannot check the caption {caption!r}: it must read 'a <colour> <shape>', or two of these joined by "
            f"one of {', '.join(RELATIONS)}; colours: {', '.join(HUES)}; shapes: {', '.join(SHAPES)}"
        )
    first, relation, second = (match[1], match[2]), match[3], (match[4], match[5])
    return ([first, second] if relation else [first]), relation


def find(image: Image.Image | NDArray[np.uint8]) -> list[Found]:
    """Everything that stands out from the background, largest first."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    ring = np.concatenate(
        [rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), rgb[:, :2].reshape(-1, 3), rgb[:, -2:].reshape(-1, 3)]
    )
    background = np.median(ring, axis=0)
    labels: NDArray[np.int32] = np.zeros((SIZE, SIZE), dtype=np.int32)
    count = int(ndimage.label(np.linalg.norm(rgb - background, axis=2) > CONTRAST, output=labels))  # pyright: ignore
    areas = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    order = [int(i) + 1 for i in np.argsort(-areas) if areas[i] >= SPECK]
    measured = [_measure(rgb, background, labels, label) for label in order[:MOST]]
    return measured + [Found(None, None, 0.0, 0.0, 0.0, 0.0, 0.0)] * (len(order) - len(measured))


def _measure(rgb: NDArray, background: NDArray, labels: NDArray, label: int) -> Found:
    own: NDArray[np.bool_] = labels == label
    depth = np.asarray(ndimage.distance_transform_edt(own))
    core = rgb[depth >= min(3.0, 0.6 * depth.max())]
    paint = np.median(core, axis=0)
    uneven = float((np.linalg.norm(core - paint, axis=1) > UNEVEN_BY).mean())
    direction = paint - background
    alpha = np.clip((rgb - background) @ direction / max(direction @ direction, CONTRAST**2), 0, 1)
    others = np.asarray(ndimage.binary_dilation((labels > 0) & ~own, iterations=2))
    near = np.asarray(ndimage.binary_dilation(own, iterations=2))
    alpha = np.where((near > others) | own, alpha, 0.0)
    if alpha.max() <= 0.5:
        return Found(None, None, 0.0, 0.0, 0.0, 0.0, 0.0)
    shape, quality, (x, y, width, height) = _fit(alpha)
    small, large = sorted((width, height))
    sound = EXTENT[0] <= small and large <= min(EXTENT[1], ASPECT * small)
    named = sound and uneven <= UNEVEN and quality >= QUALITY
    return Found(_colour_name(paint), shape if named else None, quality, x, y, width, height)


def _colour_name(paint: NDArray[np.float64]) -> str | None:
    high, low = paint.max(), paint.min()
    if high == 0 or (high - low) / high < SATURATION:
        return None
    red, green, blue = (paint - low) / (high - low)
    angle = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    distance = {name: abs((angle - hue + 180) % 360 - 180) for name, hue in HUES.items()}
    nearest = min(distance, key=lambda name: distance[name])
    return nearest if distance[nearest] <= HUE_TOLERANCE else None


def _fit(alpha: NDArray[np.float64]) -> tuple[str, float, tuple[float, float, float, float]]:
    """The ideal shape that overlaps ``alpha`` best: its name, the overlap, and centre and extent in pixels."""
    rows, columns = (np.flatnonzero(alpha.max(axis) > 0.5) for axis in (1, 0))
    (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    edges = np.array([left, top, right, bottom], dtype=float)
    alpha = _sharpen(alpha)
    ys = np.arange(max(0, top - 3), min(SIZE, bottom + 3))
    xs = np.arange(max(0, left - 3), min(SIZE, right + 3))
    patch = alpha[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    outside = alpha.sum() - patch.sum()
    fits: list[tuple[float, str, tuple[float, float, float, float]]] = []
    for shape in SHAPES:
        x0, y0, x1, y1 = (edges + (TRIANGLE_NUDGES if shape == "triangle" else NUDGES)).T
        sides = np.maximum([x1 - x0, y1 - y0], THINNEST)
        boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, *sides], axis=1)
        ideal = _sharpen(_ideal(shape, boxes, xs + 0.5, ys + 0.5))
        overlap = np.minimum(ideal, patch).sum((1, 2)) / (np.maximum(ideal, patch).sum((1, 2)) + outside)
        best = int(overlap.argmax())
        x, y, width, height = (float(value) for value in boxes[best])
        fits.append((float(overlap[best]), shape, (x, y, width, height)))
    quality, shape, box = max(fits)
    return shape, quality, box


def _sharpen(coverage: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steeper edges at the same place, so that overlap measures form and not how soft an edge is."""
    return np.clip((coverage - 0.5) * 2.5 + 0.5, 0, 1)


def _ideal(shape: str, boxes: NDArray, xs: NDArray, ys: NDArray) -> NDArray[np.float64]:
    """Coverage of the pixels with centres ``ys`` x ``xs`` by ``shape`` in each of the boxes, [boxes, rows, columns]."""
    x = xs[None, None] - boxes[:, 0, None, None]
    y = ys[None, :, None] - boxes[:, 1, None, None]
    half_width, half_height = boxes[:, 2, None, None] / 2, boxes[:, 3, None, None] / 2
    if shape == "circle":
        depth = (1 - np.hypot(x / half_width, y / half_height)) * np.sqrt(half_width * half_height)
        return np.clip(depth + 0.5, 0, 1)
    inside_y = np.clip(half_height - abs(y) + 0.5, 0, 1)
    if shape == "square":
        return np.clip(half_width - abs(x) + 0.5, 0, 1) * inside_y
    slope = half_width / (2 * half_height)
    depth = ((y + half_height) * slope - abs(x)) / np.hypot(1, slope)
    return np.clip(depth + 0.5, 0, 1) * inside_y


def _assignments(found: list[Found], asked: int) -> list[tuple[Found | None, ...]]:
    """Every way to take the asked objects for things found, None for an object that is missing."""
    return list(permutations([*found[:MOST], *([None] * max(0, asked - len(found)))], asked))


def _credit(asked: list[tuple[str, str]], relation: str | None, things: tuple[Found | None, ...]) -> tuple[float, ...]:
    pairs = [(thing, want) for thing, want in zip(things, asked, strict=True) if thing]
    names = sum((thing.colour == colour) + (thing.shape == shape) for thing, (colour, shape) in pairs)
    return (names, _related(things, relation), sum(thing.quality for thing, _ in pairs))


def _related(things: tuple[Found | None, ...], relation: str | None) -> bool:
    if relation is None or None in things:
        return False
    first, second = (thing for thing in things if thing)
    towards = RELATIONS[relation]
    apart = (first.x - second.x, first.y - second.y)
    along = apart[0] * towards[0] + apart[1] * towards[1]
    across = apart[0] * towards[1] + apart[1] * towards[0]
    return along >= MARGIN and along > abs(across)
