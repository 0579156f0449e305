"""Drawing of scenes with exact ground truth: things made of parts in front of textured stuff.

The colours of a thing's parts are unlike and independent of its class, so no region of one colour is a whole thing. As
with SAM's patches of photographs, an instance is a union of patches, and its class follows from its outline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from samcp.miniature.ground import DAY, NIGHT, Domain, Image, draw_ground, draw_texture, light, ramp
from samcp.miniature.objects import OUTLINES, Mask, Outline, place, rasterize, union
from samcp.miniature.world import CLASSES, COLORS, PARTS, SEEN, THINGS

SIZE = (256, 256)  # (height, width) in pixels

_MAX_HIDDEN = 0.35  # share of a thing's pixels in the image that later things may hide
_INSIDE = 0.38  # least distance of a thing's centre to the border of the image, in sides of its square
_MIN_PIXELS = 12  # of a thing
_SHADE = 0.1  # deviation of the light within a part
_CAMOUFLAGE = (0.1, 0.2)  # range of the difference of light between a camouflaged part and its ground
_TOUCHING = 0.4  # share of things beside which another one of the class is drawn
_SIZES = {"tiny": 26, "small": 48, "medium": 84}  # longest side in pixels, below which a thing is called so


@dataclass(frozen=True)
class Style:
    """Parameters of the scenes of a split.

    Attributes:
        classes: things and stuff that occur.
        sides: shortest and longest side of a thing's square in pixels.
        things: least and largest number of draws of a thing; some are rejected, and some draw two that touch.
        domain: palette and textures of the stuff, and the light.
        camouflage: things have the texture of the ground behind them, a little lighter or darker.
    """

    classes: Sequence[str] = CLASSES
    sides: tuple[float, float] = (24, 120)
    things: tuple[int, int] = (3, 6)
    domain: Domain = DAY
    camouflage: bool = False


STYLES: Mapping[str, Style] = {
    "train": Style(SEEN),
    "val": Style(SEEN),
    "open_val": Style(),
    "shifted_val": Style(domain=NIGHT),
    "camouflage_val": Style(SEEN, camouflage=True),
    "tiny_val": Style(SEEN, sides=(12, 26), things=(6, 12)),
}


@dataclass(frozen=True)
class DrawnObject:
    """Visible part of a thing, or all pixels of a stuff class.

    Attributes:
        name: class.
        mask: (H, W) visible pixels, at least one.
        parts: part -> visible pixels; disjoint, and their union is the mask. Hidden parts are missing. Stuff has none.
        colors: part -> name of its colour; camouflaged things have none.
    """

    name: str
    mask: Mask
    parts: Mapping[str, Mask] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box XYXY in pixels, the ends exclusive."""
        y, x = np.nonzero(self.mask)
        return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1

    @property
    def size(self) -> str:
        """Size in words: tiny, small, medium or large."""
        left, top, right, bottom = self.box
        side = max(right - left, bottom - top)
        return next((word for word, limit in _SIZES.items() if side < limit), "large")


@dataclass(frozen=True)
class DrawnScene:
    """Image (H, W, 3) uint8 RGB and its objects, which partition it: first stuff, then things from back to front."""

    image: NDArray[np.uint8]
    objects: tuple[DrawnObject, ...]


def draw_scene(random: Generator, style: Style) -> DrawnScene:
    """Draw a scene; it depends on the random numbers and the style only."""
    image, ground = draw_ground(random, style.classes, style.domain, *SIZE)
    canvas = Canvas(image, ground, style)
    names = [name for name in style.classes if name in THINGS]
    for _ in range(random.integers(style.things[0], style.things[1] + 1)):
        _draw_things(random, canvas, str(random.choice(names)))
    image = light(random, canvas.image, style.domain)
    return DrawnScene((np.clip(image, 0, 1) * 255).astype(np.uint8), canvas.objects())


class Canvas:
    """Scene while it is drawn.

    Args:
        image: ground, painted in place.
        ground: stuff class -> its pixels.
        style: of the scene.
    """

    def __init__(self, image: Image, ground: Mapping[str, Mask], style: Style) -> None:
        self.image = image
        self.style = style
        self._ground = ground
        self._things: list[DrawnObject] = []  # as if nothing hid them
        self._owner = np.zeros(SIZE, np.int64)  # number of the visible thing, from 1; 0 for the ground

    def add(self, random: Generator, name: str, parts: Mapping[str, Mask], colors: Sequence[str]) -> bool:
        """Draw a thing, unless it is too small or would hide too much of another one; return whether it was drawn.

        Args:
            parts: masks that do not overlap.
            colors: name of a colour per part, or more.
        """
        mask = union(parts)
        things = len(self._things)
        visible = np.bincount(self._owner[~mask], minlength=things + 1)[1:]
        whole = np.array([thing.mask.sum() for thing in self._things])
        if mask.sum() < _MIN_PIXELS or (visible < (1 - _MAX_HIDDEN) * whole).any():
            return False
        named = dict(zip(parts, colors, strict=False))
        self._paint(random, mask, parts, named)
        self._things.append(DrawnObject(name, mask, parts, {} if self.style.camouflage else named))
        self._owner[mask] = things + 1
        return True

    def objects(self) -> tuple[DrawnObject, ...]:
        """Return the stuff and the things by their visible pixels."""
        stuff = [DrawnObject(name, mask & (self._owner == 0)) for name, mask in self._ground.items()]
        things = []
        for number, thing in enumerate(self._things, start=1):
            own = self._owner == number
            parts = {part: mask & own for part, mask in thing.parts.items()}
            parts = {part: mask for part, mask in parts.items() if mask.any()}
            colors = {part: color for part, color in thing.colors.items() if part in parts}
            things.append(DrawnObject(thing.name, own, parts, colors))
        return tuple(drawn for drawn in (*stuff, *things) if drawn.mask.any())

    def _paint(self, random: Generator, mask: Mask, parts: Mapping[str, Mask], colors: Mapping[str, str]) -> None:
        """Paint each part in its colour, shaded along a random direction."""
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        height, width = mask[window].shape
        if self.style.camouflage:
            behind = max(self._ground, key=lambda name: (self._ground[name] & mask).sum())
            texture = draw_texture(random, behind, self.style.domain, height, width)
        for part, whole in parts.items():
            shade = 1 + _SHADE * ramp(random, height, width)
            if self.style.camouflage:
                shade += random.choice([-1, 1]) * random.uniform(*_CAMOUFLAGE)
            paint = texture if self.style.camouflage else COLORS[colors[part]]
            np.copyto(self.image[window], paint * shade, where=whole[window][..., None])


def _draw_things(random: Generator, canvas: Canvas, name: str) -> None:
    """Draw a thing at a random place, and sometimes another one of its class that touches it."""
    side = float(np.exp(random.uniform(*np.log(canvas.style.sides))))
    margin = _INSIDE * side
    centre = np.array([random.uniform(margin, SIZE[1] - margin), random.uniform(margin, SIZE[0] - margin)])
    colors = random.permutation(list(COLORS)).tolist()
    parts = rasterize(place(OUTLINES[name](random), random, side), centre, SIZE)
    count = len(PARTS[name])
    if canvas.add(random, name, parts, colors[:count]) and random.random() < _TOUCHING:
        outline = place(OUTLINES[name](random), random, side * random.uniform(0.85, 1.1))
        centre = _beside(parts, outline, centre)
        if margin <= centre[0] <= SIZE[1] - margin:
            canvas.add(random, name, rasterize(outline, centre, SIZE), colors[count:])


def _beside(parts: Mapping[str, Mask], outline: Outline, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre XY at which an outline touches a thing from the side with more room, without overlap.

    Args:
        parts: masks of the thing.
        outline: of the other thing.
        centre: of the thing.
    """
    direction = 1 if centre[0] < SIZE[1] / 2 else -1
    one, other = (union(masks)[:, ::direction] for masks in (parts, rasterize(outline, centre, SIZE)))
    rows = one.any(1) & other.any(1)
    last = SIZE[1] - 1 - one[rows][:, ::-1].argmax(1)
    first = other[rows].argmax(1)
    return centre + np.array([direction * ((last - first).max(initial=-1) + 1), 0])
