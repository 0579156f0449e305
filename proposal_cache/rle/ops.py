"""What can be done to masks without decoding them.

A mask is its COCO-compressed counts. Every function takes many masks of one image at once, and refuses, with
`MaskError`, counts that do not describe a mask of that image: pycocotools trusts them and may crash.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from proposal_cache.errors import MaskError
from proposal_cache.rle.coco import to_coco
from proposal_cache.rle.codec import (
    IntArray,
    Intervals,
    Runs,
    check,
    decode_runs,
    encode_intervals,
    foreground,
    split_columns,
)


def area(rles: Sequence[bytes], height: int, width: int) -> IntArray:
    """(N,) pixels in each mask."""
    inside = foreground(decode_runs(rles, height, width))
    return _areas(inside, len(rles))


def box(rles: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
    """(N, 4) tight boxes (x0, y0, x1, y1) in pixels, maximum exclusive; zeros for an empty mask."""
    inside = foreground(decode_runs(rles, height, width))
    return _boxes(inside, len(rles), height)


def area_and_box(rles: Sequence[bytes], height: int, width: int) -> tuple[IntArray, NDArray[np.float32]]:
    """`area` and `box` from one decoding."""
    inside = foreground(decode_runs(rles, height, width))
    return _areas(inside, len(rles)), _boxes(inside, len(rles), height)


def iop(rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """(N, M) the share of each mask that lies inside each of the others (intersection over patch, METHOD 6).

    An empty mask lies in nothing: 0.
    """
    return _overlap(rles, others, height, width, over_first=True)


def iou(rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """(N, M) intersection over union; 0 where both masks are empty."""
    return _overlap(rles, others, height, width, over_first=False)


def union(rles: Sequence[bytes], groups: Sequence[Sequence[int]], height: int, width: int) -> list[bytes]:
    """The union of the masks named by each group of indices; an empty group gives the empty mask."""
    check(rles, height, width)
    masks = to_coco(rles, height, width)
    empty = encode_intervals(_no_intervals(), 1, height, width)[0]
    return [coco.merge([masks[i] for i in group])["counts"] if len(group) else empty for group in groups]


def crop(rles: Sequence[bytes], rectangle: Sequence[float], height: int, width: int) -> list[bytes]:
    """The masks intersected with the rectangle (x0, y0, x1, y1), whose fractions round to the nearest pixel.

    The image keeps its size.
    """
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.asarray(rectangle, dtype=np.float64)))
    column, top, bottom, owner = split_columns(foreground(decode_runs(rles, height, width)), height)
    top, bottom = np.maximum(top, y0), np.minimum(bottom, y1)
    kept = (column >= x0) & (column < x1) & (top < bottom)
    base = column * height
    pieces = Intervals((base + top)[kept], (base + bottom)[kept], owner[kept])
    return encode_intervals(pieces, len(rles), height, width)


def paste(
    rles: Sequence[bytes], height: int, width: int, left: int, top: int, new_height: int, new_width: int
) -> list[bytes]:
    """The masks of a part (height, width) of an image in that image (new_height, new_width), of which it starts at
    column `left` and row `top`.

    Raises:
        MaskError: where the part does not lie in the image.
    """
    if not (0 <= left <= new_width - width and 0 <= top <= new_height - height):
        raise MaskError(
            f"a part of {height} x {width} pixels at row {top}, column {left} does not lie in an image of "
            f"{new_height} x {new_width}"
        )
    column, first, last, owner = split_columns(foreground(decode_runs(rles, height, width)), height)
    base = (column + left) * new_height + top
    return encode_intervals(Intervals(base + first, base + last, owner), len(rles), new_height, new_width)


def flip(rles: Sequence[bytes], height: int, width: int) -> list[bytes]:
    """The masks of the image mirrored left to right."""
    column, top, bottom, owner = split_columns(foreground(decode_runs(rles, height, width)), height)
    base = (width - 1 - column) * height
    order = np.lexsort((base + top, owner))
    pieces = Intervals((base + top)[order], (base + bottom)[order], owner[order])
    return encode_intervals(pieces, len(rles), height, width)


def contains(runs: Runs, points: IntArray, pixels: int) -> NDArray[np.bool_]:
    """Whether points lie inside masks, looked up in the run boundaries.

    Args:
        runs: of N masks.
        points: (N, P) column-major pixel indices in [0, pixels), P of them for each mask; fastest where ascending.
        pixels: height * width.

    Returns:
        (N, P).
    """
    count = len(runs.first) - 1
    shift = (
        np.arange(count, dtype=np.int64) * pixels
    )  # sets the masks one behind the other, so that one search serves all
    ends = runs.ends + np.repeat(shift, np.diff(runs.first))
    run = np.searchsorted(ends, (points + shift[:, None]).ravel(), side="right").reshape(points.shape)
    return ((run - runs.first[:-1, None]) & 1).astype(bool)


def encode_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], list[bytes]]:
    """One mask for each distinct value of a label map, from the changes along its columns.

    Args:
        labels: (H, W) integers.

    Returns:
        The distinct values, ascending, and the mask of each. No mask is ever built pixel by pixel.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise MaskError(f"a label map is (H, W) of integers, not {labels.shape} of {labels.dtype}")
    height, width = labels.shape
    flat = labels.ravel(order="F")
    start = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]).astype(np.int64)[: flat.size]
    stop = np.append(start[1:], flat.size)[: len(start)]
    ids, owner = np.unique(flat[start], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    intervals = Intervals(start[order], stop[order], owner[order].astype(np.int64))
    return ids, encode_intervals(intervals, len(ids), height, width)


def _no_intervals() -> Intervals:
    none = np.zeros(0, np.int64)
    return Intervals(none, none, none)


def _areas(inside: Intervals, count: int) -> IntArray:
    areas = np.zeros(count, np.int64)
    np.add.at(areas, inside.owner, inside.stop - inside.start)
    return areas


def _boxes(inside: Intervals, count: int, height: int) -> NDArray[np.float32]:
    boxes = np.zeros((count, 4), np.float32)
    start, stop, owner = inside
    if not len(owner):
        return boxes
    left, right = start // height, (stop - 1) // height
    one_column = left == right
    top = np.where(one_column, start - left * height, 0)
    bottom = np.where(one_column, stop - left * height, height)
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    filled = owner[begins]
    boxes[filled, 0] = np.minimum.reduceat(left, begins)
    boxes[filled, 1] = np.minimum.reduceat(top, begins)
    boxes[filled, 2] = np.maximum.reduceat(right, begins) + 1
    boxes[filled, 3] = np.maximum.reduceat(bottom, begins)
    return boxes


def _overlap(
    rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int, *, over_first: bool
) -> NDArray[np.float64]:
    check(rles, height, width)
    check(others, height, width)
    if not len(rles) or not len(others):
        return np.zeros((len(rles), len(others)))
    # pycocotools divides by the area of the first alone where the second is a crowd.
    ratio = coco.iou(to_coco(rles, height, width), to_coco(others, height, width), [int(over_first)] * len(others))
    return np.nan_to_num(ratio, nan=0.0)
