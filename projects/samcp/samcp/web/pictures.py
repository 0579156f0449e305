"""Pictures and legends of the page. They are drawn again at each movement of a slider, so no text is drawn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from proposal_cache import Patches
from samcp.result import Result
from samcp.visualization.palette import class_colors, shade

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

_OPACITY = 0.55  # of segments
_DIMMED = 0.35  # brightness of the pixels outside a group
_HIGHLIGHT = np.array([255, 196, 0])  # outline of a patch
_DUPLICATE_IOU = 0.5  # with a better instance; higher ones are not drawn
_SAMPLES = 4  # colours of a class in the legend
_LISTED = 12  # most words of which the missing ones are named


@dataclass(frozen=True)
class Segments:
    """Segments of one view, S in all.

    Attributes:
        ids: (H, W) int, number of a segment from 1, or 0.
        classes: (S,) class of each segment.
    """

    ids: NDArray[np.integer]
    classes: Sequence[int]


def find_segments(result: Result, view: str) -> Segments:
    """Return the segments of the view "panoptic", "instance" or "semantic"."""
    if view == "panoptic":
        ids, infos = result.panoptic
        return Segments(ids.numpy(), [info["category_id"] for info in infos])
    if view == "semantic":
        classes, ids = np.unique(result.semantic.numpy(), return_inverse=True)
        first = int(classes[0] >= 0)  # class -1 becomes segment 0
        return Segments(ids.reshape(result.image.shape[:2]) + first, classes[classes >= 0].tolist())
    return _instances(result)


def _instances(result: Result) -> Segments:
    """Return the instances above the score threshold, without duplicates, good ones in front."""
    found = result.instances[result.instances.scores > result.inference.score_threshold]
    height, width = result.image.shape[:2]
    masks = Patches.from_rles(height, width, [rle["counts"] for rle in found.pred_masks.rles])
    overlaps = masks.iou(masks)
    kept: list[int] = []
    for i in range(len(masks)):  # in descending order of scores
        if overlaps[i, kept].max(initial=0) <= _DUPLICATE_IOU:
            kept.append(i)
    ids = np.zeros((height, width), int)
    for number in reversed(range(len(kept))):
        ids[masks.decode([kept[number]])[0]] = number + 1
    return Segments(ids, found.pred_classes[kept].tolist())


def segment_colors(segments: Segments) -> NDArray[np.uint8]:
    """Return the colour of each segment, (S, 3): of its class, and a shade of it for each further segment."""
    colors = class_colors(max(segments.classes, default=0) + 1)
    seen: Counter[int] = Counter()
    shades = np.zeros((len(segments.classes), 3))
    for i, c in enumerate(segments.classes):
        shades[i] = shade(colors[c], seen[c])
        seen[c] += 1
    return (255 * shades).round().astype(np.uint8)


def draw_segments(image: Picture, segments: Segments, colors: NDArray[np.uint8]) -> Picture:
    """Draw segments over an image, with white outlines."""
    canvas, covered = image.astype(np.float32), segments.ids > 0
    canvas[covered] = (1 - _OPACITY) * canvas[covered] + _OPACITY * colors[segments.ids[covered] - 1]
    canvas[find_boundaries(segments.ids, mode="inner")] = 255
    return canvas.round().astype(np.uint8)


def draw_legend(segments: Segments, colors: NDArray[np.uint8], names: Sequence[str]) -> str:
    """Return HTML: colours, name and number of segments of each class, then the classes that were not found."""
    counts = Counter(segments.classes)
    entries = []
    for c, count in sorted(counts.items()):
        samples = colors[[i for i, other in enumerate(segments.classes) if other == c]][:_SAMPLES]
        swatches = "".join(f'<i style="background:rgb{tuple(color)}"></i>' for color in samples.tolist())
        number = f" × {count}" if count > 1 else ""
        entries.append(f"<li>{swatches}{escape(names[c])}{number}</li>")
    missing = [name for c, name in enumerate(names) if c not in counts]
    if missing and len(names) <= _LISTED:
        entries.append(f'<li class="missing">not found: {escape(", ".join(missing))}</li>')
    elif not entries:
        entries.append('<li class="missing">nothing found</li>')
    return f"<ul>{''.join(entries)}</ul>"


def highlight(picture: Picture, group: NDArray[np.bool_], patch: NDArray[np.bool_]) -> Picture:
    """Dim the pixels outside a group (H, W) and outline one of its patches (H, W)."""
    canvas = picture.astype(np.float32)
    canvas[~group] *= _DIMMED
    canvas[find_boundaries(group, mode="inner")] = 255
    canvas[find_boundaries(patch, mode="thick")] = _HIGHLIGHT
    return canvas.round().astype(np.uint8)


def outline_box(picture: Picture, box: Sequence[int]) -> Picture:
    """Outline a box (x0, y0, x1, y1)."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    framed = picture.copy()
    framed[find_boundaries(inside, mode="thick")] = _HIGHLIGHT
    return framed
