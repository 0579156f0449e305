"""Set operations and measures on masks, computed on their runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from proposal_cache.errors import MaskError
from proposal_cache.rle.codec import (
    IntArray,
    Intervals,
    check,
    decode_intervals,
    encode_intervals,
    to_coco,
)


def area(rles: Sequence[bytes], height: int, width: int) -> IntArray:
    """Return the number of pixels in each mask, (N,).

    >>> rle.area([b"522"], height=3, width=3)
    array([2])
    """
    return area_and_box(rles, height, width)[0]


def area_and_box(rles: Sequence[bytes], height: int, width: int) -> tuple[IntArray, NDArray[np.float32]]:
    """Return areas in pixels, (N,), and tight boxes (x0, y0, x1, y1), (N, 4), maximum exclusive; zeros if empty.

    >>> rle.area_and_box([b"522"], height=3, width=3)
    (array([2]), array([[1., 0., 3., 3.]], dtype=float32))
    """
    return measure(decode_intervals(rles, height, width), len(rles), height)


def measure(intervals: Intervals, count: int, height: int) -> tuple[IntArray, NDArray[np.float32]]:
    """Return areas and boxes of `count` masks of an image of this height, as `area_and_box`, from foreground runs."""
    start, stop, owner = intervals
    areas = np.bincount(owner, stop - start, count).astype(np.int64)
    boxes = np.zeros((count, 4), np.float32)
    if not len(owner):
        return areas, boxes
    left, right = start // height, (stop - 1) // height
    one_column = left == right
    top = np.where(one_column, start - left * height, 0)
    bottom = np.where(one_column, stop - left * height, height)
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    boxes[owner[begins], 0] = np.minimum.reduceat(left, begins)
    boxes[owner[begins], 1] = np.minimum.reduceat(top, begins)
    boxes[owner[begins], 2] = np.maximum.reduceat(right, begins) + 1
    boxes[owner[begins], 3] = np.maximum.reduceat(bottom, begins)
    return areas, boxes


def iop(rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """Return intersection over the area of the first mask, (N, M); 0 if that mask is empty.

    >>> rle.iop([b"123"], [b"231"], height=3, width=2)
    array([[0.5]])
    """
    return _overlap(rles, others, height, width, crowd=1)


def iou(rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int) -> NDArray[np.float64]:
    """Return intersection over union, (N, M); 0 if both masks are empty.

    >>> rle.iou([b"123"], [b"231"], height=3, width=2)
    array([[0.25]])
    """
    return _overlap(rles, others, height, width, crowd=0)


def union(rles: Sequence[bytes], groups: Sequence[Sequence[int]], height: int, width: int) -> list[bytes]:
    """Return the union of each group of masks, given by their indices; an empty group gives an empty mask.

    >>> rle.area(rle.union([b"123", b"231"], [[0, 1], [1], []], height=3, width=2), height=3, width=2)
    array([4, 3, 0])
    """
    check(rles, height, width)
    masks = to_coco(rles, height, width)
    empty = coco.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)["counts"]
    return [coco.merge([masks[i] for i in group])["counts"] if len(group) else empty for group in groups]


def crop(rles: Sequence[bytes], rectangle: Sequence[float], height: int, width: int) -> list[bytes]:
    """Set pixels outside a rectangle to background; the image size does not change.

    The rectangle (x0, y0, x1, y1) in pixels is rounded to integers, and may extend beyond the image.

    >>> rle.area(rle.crop([b"123"], (0, 0, 1, 2), height=3, width=2), height=3, width=2)
    array([1])
    """
    pieces = crop_intervals(decode_intervals(rles, height, width), rectangle, height)
    return encode_intervals(pieces, len(rles), height, width)


def crop_intervals(intervals: Intervals, rectangle: Sequence[float], height: int) -> Intervals:
    """Return the parts of foreground runs inside a rectangle, as `crop`; a run may be split at borders of columns."""
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.asarray(rectangle, dtype=np.float64)))
    column, top, bottom, owner = _split_columns(intervals, height)
    top, bottom = np.maximum(top, y0), np.minimum(bottom, y1)
    kept = (column >= x0) & (column < x1) & (top < bottom)
    base = column * height
    return Intervals((base + top)[kept], (base + bottom)[kept], owner[kept])


def paste(
    rles: Sequence[bytes], height: int, width: int, left: int, top: int, new_height: int, new_width: int
) -> list[bytes]:
    """Place the masks of a window (height, width) in an image (new_height, new_width) that contains the window.

    The window's first pixel is at row `top`, column `left`. Raises MaskError if the window is not inside the image.

    >>> rle.decode(rle.paste([b"04"], 2, 2, left=1, top=0, new_height=2, new_width=4), 2, 4)[0].astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0]])
    """
    if not (0 <= left <= new_width - width and 0 <= top <= new_height - height):
        raise MaskError(
            f"a window of {height} x {width} pixels at row {top}, column {left} is not inside an image of "
            f"{new_height} x {new_width}"
        )
    column, first, last, owner = _split_columns(decode_intervals(rles, height, width), height)
    base = (column + left) * new_height + top
    return encode_intervals(Intervals(base + first, base + last, owner), len(rles), new_height, new_width)


def contains(intervals: Intervals, points: IntArray, pixels: int) -> NDArray[np.bool_]:
    """Return whether points lie inside masks, by binary search in the boundaries of foreground runs.

    >>> rle.contains(rle.decode_intervals([b"522"], height=3, width=3), np.array([[4, 5, 6, 7]]), pixels=9)
    array([[False,  True,  True, False]])

    Args:
        points: (N, P) column-major pixel indices in [0, pixels), P per mask; fastest if ascending.
        pixels: height * width.
    """
    # Shift each mask's pixel indices by its number, so that one search serves all masks.
    boundaries = (np.stack([intervals.start, intervals.stop], axis=1) + intervals.owner[:, None] * pixels).ravel()
    shifted = points + np.arange(len(points))[:, None] * pixels
    before = np.searchsorted(boundaries, shifted.ravel(), side="right").reshape(points.shape)
    return (before & 1).astype(bool)


def encode_labels(labels: NDArray[Any]) -> tuple[NDArray[Any], list[bytes]]:
    """Encode each value of a label map as one mask, without building the masks in pixels.

    >>> values, rles = rle.encode_labels(np.array([[7, 7, 0], [7, 0, 0]]))
    >>> values, rle.area(rles, 2, 3)
    (array([0, 7]), array([3, 3]))

    Args:
        labels: (H, W) integers.

    Returns:
        The distinct values in ascending order, and one mask per value.
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    start = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]).astype(np.int64)[: flat.size]
    stop = np.append(start[1:], flat.size)[: len(start)]
    ids, owner = np.unique(flat[start], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    intervals = Intervals(start[order], stop[order], owner[order].astype(np.int64))
    return ids, encode_intervals(intervals, len(ids), height, width)


def _split_columns(intervals: Intervals, height: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return column, top, bottom (exclusive) and owner of each foreground run, split at column borders."""
    start, stop, owner = intervals
    first = start // height
    pieces = (stop - 1) // height - first + 1
    source = np.repeat(np.arange(len(pieces)), pieces)
    column = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[source]
    top = np.maximum(start[source] - column * height, 0)
    bottom = np.minimum(stop[source] - column * height, height)
    return column, top, bottom, owner[source]


def _overlap(rles: Sequence[bytes], others: Sequence[bytes], height: int, width: int, crowd: int) -> NDArray[Any]:
    check(rles, height, width)
    check(others, height, width)
    if not len(rles) or not len(others):
        return np.zeros((len(rles), len(others)))
    # pycocotools divides by the area of the first mask alone if the second is marked as a crowd.
    ratio = coco.iou(to_coco(rles, height, width), to_coco(others, height, width), [crowd] * len(others))
    return np.nan_to_num(ratio, nan=0.0)
