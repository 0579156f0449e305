"""Drawn scenes with exact ground truth: shapes of two colours (things) in front of textured ground (stuff).

The class of a shape does not follow from its colours or parts, and no region of one colour is a whole thing. As with
SAM's patches of photographs, an instance is a union of patches, and its class follows from its outline.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.draw import polygon2mask

from samcp.data.datasets.drawn import Segment
from samcp.miniature.ground import Image, grass, sand, sea, sky
from samcp.miniature.objects import Mask

_PALETTE = np.array(
    [
        [0.84, 0.15, 0.16],
        [0.98, 0.55, 0.10],
        [0.58, 0.25, 0.70],
        [0.96, 0.42, 0.66],
        [0.13, 0.13, 0.17],
        [0.97, 0.97, 0.95],
        [0.45, 0.27, 0.16],
        [0.08, 0.30, 0.60],
    ]
)
_CROWD_SHARE = 0.12  # share of images with a crowd of discs, and of images with an unlabelled box
_MAX_HIDDEN = 0.35  # largest share of a thing's visible pixels that a later thing may cover


def draw_scene(rng: Generator, height: int, width: int) -> tuple[NDArray[np.uint8], list[Segment]]:
    """Draw one scene.

    Returns:
        (H, W, 3) uint8 RGB and its segments, which do not overlap; pixels without a segment are void.
    """
    image, ground = _draw_ground(rng, height, width)
    owner = np.zeros((height, width), np.int64)  # index of the visible thing, 0 for the ground
    names = [""]
    if rng.random() < _CROWD_SHARE:
        _paint_crowd(rng, image, owner, len(names))
        names.append("crowd")
    if rng.random() < _CROWD_SHARE:
        _paint_box(rng, image, owner, len(names))
        names.append("unlabelled")
    for _ in range(rng.integers(3, 7)):
        name = str(rng.choice(list(_SHAPES)))
        if _paint_thing(rng, image, owner, len(names), name):
            names.append(name)
    segments = [Segment(name, mask & (owner == 0)) for name, mask in ground]
    for index, name in enumerate(names[1:], start=1):
        if name != "unlabelled":
            segments.append(Segment("disc" if name == "crowd" else name, owner == index, crowd=name == "crowd"))
    image = gaussian_filter(image, (0.5, 0.5, 0)) + rng.normal(0, 0.015, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), [s for s in segments if s.mask.any()]


def _draw_ground(rng: Generator, height: int, width: int) -> tuple[Image, list[tuple[str, Mask]]]:
    """Draw sky above one or two of grass, sand and water, separated by wavy lines."""
    y, x = np.mgrid[:height, :width]
    wave = 0.03 * height * np.sin(2 * np.pi * (x / width * rng.uniform(0.5, 1.5) + rng.random()))
    sky = y < height * rng.uniform(0.25, 0.5) + wave
    left = x < width * rng.uniform(-0.4, 1.4) + (y - height / 2) * rng.uniform(-0.5, 0.5)
    near, far = rng.choice(["grass", "sand", "water"], 2, replace=False)
    parts = [("sky", sky), (str(near), ~sky & left), (str(far), ~sky & ~left)]
    image = np.zeros((height, width, 3))
    for name, mask in parts:
        image[mask] = _TEXTURES[name](rng, height, width)[mask]
    return image, parts


_TEXTURES = {"sky": sky, "grass": grass, "sand": sand, "water": sea}


def _paint_thing(rng: Generator, image: Image, owner: NDArray[np.int64], index: int, name: str) -> bool:
    """Draw a shape of two colours at a random place; return False, and draw nothing, if it would hide too much."""
    height, width = owner.shape
    radius = min(height, width) * rng.uniform(0.11, 0.22)
    centre = rng.uniform(0.15, 0.85, 2) * (height, width)
    outline, inner = _SHAPES[name](*_polar(rng, height, width, centre, radius))
    hidden = np.bincount(owner[outline], minlength=index) / np.maximum(np.bincount(owner.ravel(), minlength=index), 1)
    if outline.sum() < 40 or (hidden[1:] > _MAX_HIDDEN).any():
        return False
    first, second = rng.choice(len(_PALETTE), 2, replace=False)
    image[outline] = _PALETTE[first]
    image[outline & inner] = _PALETTE[second]
    owner[outline] = index
    return True


def _polar(
    rng: Generator, height: int, width: int, centre: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (H, W) distances from the centre in radii, and angles from a random direction in radians."""
    y, x = np.mgrid[:height, :width] + 0.5
    offset_y, offset_x = y - centre[0], x - centre[1]
    return np.hypot(offset_y, offset_x) / radius, np.arctan2(offset_y, offset_x) + rng.uniform(0, 2 * np.pi)


def _disc(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[Mask, Mask]:
    return distance < 1, np.sin(angle) > 0.15


def _ring(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[Mask, Mask]:
    return (distance < 1) & (distance > 0.5), np.sin(2 * angle) > 0


def _square(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[Mask, Mask]:
    side = np.maximum(np.abs(distance * np.cos(angle)), np.abs(distance * np.sin(angle)))
    return side < 0.8, side < 0.45


def _triangle(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[Mask, Mask]:
    side = np.max([distance * np.cos(angle + turn) for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)], axis=0)
    return side < 0.6, distance * np.cos(angle) > 0.1


def _star(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[Mask, Mask]:
    """Return a star with five points."""
    to_point = np.abs((angle * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at a point, 0 between two
    return distance < 0.5 + 0.65 * to_point**1.5, distance < 0.42


# Each maps polar coordinates to the whole shape and to its part with the second colour.
_SHAPES: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[Mask, Mask]]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}

THINGS: tuple[str, ...] = tuple(_SHAPES)
STUFF: tuple[str, ...] = tuple(_TEXTURES)


def _paint_crowd(rng: Generator, image: Image, owner: NDArray[np.int64], index: int) -> None:
    """Draw many small discs close together, labelled as one crowd."""
    height, width = owner.shape
    radius = min(height, width) * 0.035
    middle = rng.uniform(0.3, 0.7, 2) * (height, width)
    for offset in rng.normal(0, 3 * radius, (12, 2)):
        distance, angle = _polar(rng, height, width, middle + offset, radius)
        outline, inner = _disc(distance, angle)
        first, second = rng.choice(len(_PALETTE), 2, replace=False)
        image[outline] = _PALETTE[first]
        image[outline & inner] = _PALETTE[second]
        owner[outline] = index


def _paint_box(rng: Generator, image: Image, owner: NDArray[np.int64], index: int) -> None:
    """Draw a slanted checkered box, whose pixels are void."""
    height, width = owner.shape
    corner = rng.uniform(0.1, 0.8, 2) * (height, width)
    sides = rng.uniform(0.1, 0.2, 2) * (height, width)
    corners = corner + np.array([[0, 0], [0.1, 1], [1.1, 0.9], [1, 0]]) * sides
    outline = polygon2mask((height, width), corners)
    y, x = np.nonzero(outline)
    image[outline] = np.where((y // 4 + x // 4) % 2, 0.35, 0.6)[:, None]
    owner[outline] = index
