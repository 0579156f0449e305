"""Outlines of things: polygons of their parts in a unit square, with random proportions."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Polygon: TypeAlias = NDArray[np.float64]  # (V, 2) XY from -1 to 1, y downwards
Outline: TypeAlias = list[tuple[str, Polygon]]  # part and polygon, in the order of painting; a part may have several
Mask: TypeAlias = NDArray[np.bool_]

_SUBPIXEL = 4  # binary digits of the fraction in OpenCV's coordinates
_MAX_TURN = 0.15  # radians


def place(outline: Outline, random: Generator, side: float) -> Outline:
    """Return the outline at its size in pixels around (0, 0): turned a little, and mirrored at random.

    Args:
        outline: in the unit square.
        side: of the square in pixels.
    """
    turn = random.uniform(-_MAX_TURN, _MAX_TURN)
    mirror = random.choice([-1.0, 1.0])
    matrix = side / 2 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [mirror, 1.0]
    return [(part, polygon @ matrix.T) for part, polygon in outline]


def rasterize(outline: Outline, centre: NDArray[np.float64], size: tuple[int, int]) -> dict[str, Mask]:
    """Return the mask (H, W) of each part around a centre XY; later polygons cover earlier ones.

    Parts without a pixel are missing.
    """
    import cv2  # not above: the dataset is registered on machines without OpenCV, too

    names = list(dict.fromkeys(part for part, _ in outline))
    canvas = np.zeros(size, np.uint8)
    for part, polygon in outline:
        points = np.round((polygon + centre - 0.5) * 2**_SUBPIXEL).astype(np.int32)
        cv2.fillPoly(canvas, [points], [names.index(part) + 1], lineType=cv2.LINE_8, shift=_SUBPIXEL)
    masks = {name: canvas == index for index, name in enumerate(names, start=1)}
    return {name: mask for name, mask in masks.items() if mask.any()}


def union(masks: Mapping[str, Mask]) -> Mask:
    """Return the union of at least one mask (H, W)."""
    return np.logical_or.reduce(list(masks.values()))


def _polygon(*points: tuple[float, float]) -> Polygon:
    return np.array(points)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, turn: float = 0.0) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack([radius_x * np.cos(angle), (radius_y or radius_x) * np.sin(angle)], 1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ rotation + (x, y)


def _house(random: Generator) -> Outline:
    width, eaves = random.uniform(0.65, 0.85), random.uniform(-0.25, 0.0)
    ridge = random.choice([0.0, 0.35]) * width
    door, sill = random.uniform(-0.45, 0.1), eaves + random.uniform(0.2, 0.3)
    window = door + 0.45 if door < -0.1 else door - 0.45
    return [
        ("wall", _box(-width, eaves, width, 0.95)),
        ("roof", _polygon((-width - 0.15, eaves), (-ridge, -0.95), (ridge, -0.95), (width + 0.15, eaves))),
        ("door", _box(door, 0.95 - random.uniform(0.5, 0.6), door + 0.32, 0.95)),
        ("window", _box(window, sill, window + 0.34, sill + 0.34)),
    ]


def _tree(random: Generator) -> Outline:
    width = random.uniform(0.1, 0.17)
    trunk = ("trunk", _box(-width, -0.1, width, 0.97))
    if random.random() < 0.5:  # conifer
        tiers = [(0.5, 0.72), (0.05, 0.56), (-0.4, 0.4)]
        return [trunk] + [("crown", _polygon((-w, y), (0, y - 0.58), (w, y))) for y, w in tiers]
    lobes = [(0.0, -0.55, 0.42), (-0.38, -0.2, 0.36), (0.38, -0.2, 0.36), (0.0, -0.1, 0.38)]
    return [trunk] + [("crown", _ellipse(x, y, radius * random.uniform(0.95, 1.1))) for x, y, radius in lobes]


def _person(random: Generator) -> Outline:
    shoulder, arm, step = random.uniform(0.2, 0.26), random.uniform(0.3, 0.5), random.uniform(0.08, 0.25)
    return [
        ("legs", _polygon((-0.2, 0.2), (0.02, 0.2), (-step + 0.1, 0.97), (-step - 0.1, 0.97))),
        ("legs", _polygon((-0.02, 0.2), (0.2, 0.2), (step + 0.1, 0.97), (step - 0.1, 0.97))),
        ("shirt", _polygon((-shoulder, -0.45), (shoulder, -0.45), (0.21, 0.28), (-0.21, 0.28))),
        ("shirt", _polygon((-shoulder, -0.45), (-shoulder, -0.25), (-arm - 0.06, 0.22), (-arm - 0.2, 0.15))),
        ("shirt", _polygon((shoulder, -0.45), (shoulder, -0.25), (arm + 0.06, 0.22), (arm + 0.2, 0.15))),
        ("head", _ellipse(0, -0.7, 0.23, 0.26)),
    ]


def _car(random: Generator) -> Outline:
    roof, front, back = random.uniform(-0.5, -0.38), random.uniform(0.3, 0.5), random.uniform(0.45, 0.65)
    radius = random.uniform(0.19, 0.23)
    cabin = _polygon((-back - 0.1, 0.0), (-back + 0.1, roof), (front - 0.15, roof), (front + 0.15, 0.0))
    glass = _polygon((-back + 0.05, -0.03), (-back + 0.17, roof + 0.1), (front - 0.2, roof + 0.1), (front, -0.03))
    hull = _polygon((-0.97, 0.05), (-0.9, -0.05), (0.8, -0.05), (0.97, 0.1), (0.97, 0.38), (-0.97, 0.38))
    wheels = [("wheels", _ellipse(x, 0.38, radius)) for x in (-0.55, 0.55)]
    return [("body", cabin), ("body", hull), ("window", glass), *wheels]


def _boat(random: Generator) -> Outline:
    mast, low = random.uniform(-0.15, 0.15), random.uniform(0.2, 0.35)
    stern, bow = random.uniform(0.5, 0.65), random.uniform(0.55, 0.7)
    flag = _polygon((mast, -0.97), (mast + 0.42, -0.84), (mast, -0.7))
    return [
        ("sail", _polygon((mast, -0.7), (mast + 0.75, low), (mast, low))),
        ("sail", _polygon((mast - 0.08, -0.6), (mast - 0.08, low), (mast - 0.55, low))),
        ("hull", _polygon((mast - 0.06, -0.97), (mast, -0.97), (mast, low + 0.1), (mast - 0.06, low + 0.1))),
        ("hull", _polygon((-0.95, low + 0.1), (0.95, low + 0.1), (bow, 0.85), (-stern, 0.85))),
        ("flag", flag),
    ]


def _dog(random: Generator) -> Outline:
    x, y = _pet_head(random)
    return [*_pet(random, x, y), ("ears", _ellipse(x - 0.2, y + 0.12, 0.13, 0.3, 0.15))]


def _cat(random: Generator) -> Outline:
    x, y = _pet_head(random)
    ears = [_polygon((x + a, y - 0.12), (x + a + s * 0.04, y - 0.52), (x + a + s * 0.3, y - 0.2)) for a, s in _CAT_EARS]
    return [("ears", ear) for ear in ears] + _pet(random, x, y)


_CAT_EARS = ((-0.27, 1.0), (0.27, -1.0))  # place and direction


def _pet_head(random: Generator) -> tuple[float, float]:
    """Return the centre of a dog's or cat's head."""
    return random.uniform(0.58, 0.66), random.uniform(-0.36, -0.24)


def _pet(random: Generator, x: float, y: float) -> Outline:
    """Return the parts that dog and cat share."""
    tip = random.uniform(-0.6, -0.1)
    height = random.uniform(0.27, 0.33)
    legs = [("legs", _box(left, 0.3, left + 0.17, 0.93)) for left in (-0.62, -0.36, 0.14, 0.4)]
    tail = _polygon((-0.6, 0.05), (-0.97, tip - 0.05), (-0.85, tip - 0.15), (-0.5, -0.12))
    return [
        ("tail", tail),
        *legs,
        ("body", _ellipse(-0.06, 0.16, 0.68, height)),
        ("head", _ellipse(x, y, 0.3, 0.28)),
    ]


def _kite(random: Generator) -> Outline:
    middle = random.uniform(-0.4, -0.2)
    side = random.uniform(0.5, 0.62)
    bows = [(0.0, 0.5), (0.18, 0.72), (-0.08, 0.92)]
    tail = [("tail", _polygon((x - 0.16, y - 0.09), (x + 0.16, y + 0.09), (x + 0.16, y - 0.09), (x - 0.16, y + 0.09)))
            for x, y in bows]  # fmt: skip
    string = _polygon((-0.03, 0.3), (0.03, 0.3), (0.21, 0.72), (-0.05, 0.95), (-0.11, 0.92), (0.13, 0.72))
    return [
        ("tail", string),
        *tail,
        ("top", _polygon((-side, middle), (0, -0.97), (side, middle))),
        ("bottom", _polygon((-side, middle), (side, middle), (0, 0.38))),
    ]


def _umbrella(random: Generator) -> Outline:
    rim, width = random.uniform(-0.05, 0.1), random.uniform(0.88, 0.97)
    hook = _polygon((0.05, 0.7), (0.05, 0.97), (-0.32, 0.97), (-0.32, 0.72), (-0.2, 0.72), (-0.2, 0.86), (-0.05, 0.86))
    y = np.linspace(-0.95, rim, 10)
    half = width * np.sqrt(1 - ((rim - y) / (rim + 0.95)) ** 2)
    panels: Outline = []
    for index, (left, right) in enumerate(pairwise(_RIBS)):
        scallop = _polygon(((left + right) / 2 * width, rim - 0.08))
        edges = np.stack([left * half, y], 1), scallop, np.stack([right * half, y], 1)[::-1]
        panels.append(("stripe" if index % 2 else "canopy", np.concatenate(edges)))
    return [("handle", _box(-0.055, -0.5, 0.055, 0.9)), ("handle", hook), *panels]


_RIBS = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)  # of an umbrella, from left to right

OUTLINES: Mapping[str, Callable[[Generator], Outline]] = {
    "house": _house,
    "tree": _tree,
    "person": _person,
    "car": _car,
    "boat": _boat,
    "dog": _dog,
    "cat": _cat,
    "kite": _kite,
    "umbrella": _umbrella,
}
