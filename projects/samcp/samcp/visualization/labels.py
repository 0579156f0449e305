"""Text on pictures: labels of regions that do not overlap, and legends."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from skimage.color import rgb2gray

from samcp.visualization.palette import Colors

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive

_FONT = "DejaVu Sans"
_PADDING = 0.25  # of a label, in units of the size of the font
_DIRECTIONS = 8  # in which a label is moved that would overlap others
_STEPS = 6  # of half a line in each direction


@dataclass(frozen=True)
class Label:
    """Label of a region.

    Attributes:
        text: one line.
        anchor: x and y of its centre, in pixels, if nothing else is there.
        color: (3,) of its background.
    """

    text: str
    anchor: tuple[float, float]
    color: Colors


@dataclass(frozen=True)
class LegendEntry:
    """Entry of a legend: a rectangle (h, w, 3) uint8 of any size, and its name."""

    sample: np.ndarray
    text: str


def place_labels(labels: Sequence[Label], size: Sequence[int], font_size: int) -> list[tuple[Label, Box]]:
    """Find boxes inside a picture of `size` (height, width) that do not overlap.

    A label that would overlap an earlier one is moved to the nearest free place, and skipped if there is none nearby.
    """
    placed: list[tuple[Label, Box]] = []
    for label in labels:
        box = _free_box(label, [other for _, other in placed], size, font_size)
        if box is not None:
            placed.append((label, box))
    return placed


def draw_labels(picture: np.ndarray, labels: Sequence[Label], font_size: int) -> np.ndarray:
    """Draw labels over a picture (H, W, 3) uint8; see :func:`place_labels`."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for label, box in place_labels(labels, picture.shape[:2], font_size):
        left, top, right, bottom = box
        background = tuple(round(255 * channel) for channel in label.color)
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=font_size // 4, fill=background)
        centre = ((left + right) / 2, (top + bottom) / 2)
        draw.text(centre, label.text, fill=_text_color(label.color), font=_font(font_size), anchor="mm")
    return np.asarray(image)


def draw_legend(entries: Sequence[LegendEntry], width: int, font_size: int) -> np.ndarray:
    """Draw a legend on white, (height, width, 3) uint8, with as many lines as it needs."""
    line, gap = round(1.8 * font_size), font_size
    swatch = round(1.4 * font_size)
    x, y, places = gap // 2, gap // 2, []
    for entry in entries:
        length = swatch + gap // 2 + int(_font(font_size).getlength(entry.text)) + gap
        if x > gap // 2 and x + length > width:
            x, y = gap // 2, y + line
        places.append((x, y))
        x += length
    image = Image.new("RGB", (width, y + line if entries else 0), "white")
    draw = ImageDraw.Draw(image)
    for entry, (left, top) in zip(entries, places, strict=True):
        sample = Image.fromarray(entry.sample).resize((swatch, font_size), Image.Resampling.NEAREST)
        image.paste(sample, (left, top))
        draw.rectangle((left, top, left + swatch - 1, top + font_size - 1), outline="black")
        text = (left + swatch + gap // 2, top + font_size / 2)
        draw.text(text, entry.text, fill="black", font=_font(font_size), anchor="lm")
    return np.asarray(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(_FONT), size)


def _free_box(label: Label, taken: Sequence[Box], size: Sequence[int], font_size: int) -> Box | None:
    """Return the box nearest to the label's anchor that is inside the picture and overlaps no other box, or None."""
    padding = round(_PADDING * font_size)
    width = int(_font(font_size).getlength(label.text)) + 2 * padding
    height = round(1.2 * font_size) + 2 * padding
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    steps = np.arange(1, _STEPS + 1) * height / 2
    offsets = [(0.0, 0.0), *((r * np.cos(a), r * np.sin(a)) for r in steps for a in angles)]
    for dx, dy in offsets:
        left = int(np.clip(label.anchor[0] + dx - width / 2, 0, max(0, size[1] - width)))
        top = int(np.clip(label.anchor[1] + dy - height / 2, 0, max(0, size[0] - height)))
        box = (left, top, left + width, top + height)
        if not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_color(background: Colors) -> str:
    return "black" if rgb2gray(background[None])[0] > 0.45 else "white"
