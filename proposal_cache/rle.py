"""What can be done to masks without decoding them.

A mask is its COCO-compressed counts: the lengths of the runs of background and foreground, in turn and beginning with
background, down the columns of the image; each length as a signed number in groups of five bits (from the fourth on,
the difference to the length two before), each group one character. Every function takes many masks of one image at
once, and refuses, with `MaskError`, counts that do not describe a mask of that image: pycocotools trusts them and may
crash.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from proposal_cache.errors import MaskError

MAX_PIXELS = 2**31 - 1  # of an image: pycocotools counts pixels in 32 bits

_MAX_GROUPS = 7  # 35 bits hold every difference of two counts; a longer number is damage
_MORE, _SIGN, _FIVE_BITS, _FIRST_CHARACTER = 0x20, 0x10, 0x1F, 48

IntArray = NDArray[np.int64]


class Runs(NamedTuple):
    """Run boundaries of N masks: mask i owns `ends[first[i]:first[i + 1]]`.

    Attributes:
        ends: (R,) where each run ends, as a pixel index in column-major order; the last of a mask is height * width.
        first: (N + 1,) the first run of each mask; even runs of a mask are background, odd ones foreground.
    """

    ends: IntArray
    first: IntArray


class Intervals(NamedTuple):
    """Foreground runs alone, pixel indices in column-major order: mask `owner[k]` covers `start[k]:stop[k]`."""

    start: IntArray
    stop: IntArray
    owner: IntArray


def area(rles: Sequence[bytes], height: int, width: int) -> IntArray:
    """(N,) pixels in each mask."""
    foreground = _foreground(decode_runs(rles, height, width))
    return _areas(foreground, len(rles))


def box(rles: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
    """(N, 4) tight boxes (x0, y0, x1, y1) in pixels, maximum exclusive; zeros for an empty mask."""
    foreground = _foreground(decode_runs(rles, height, width))
    return _boxes(foreground, len(rles), height)


def area_and_box(rles: Sequence[bytes], height: int, width: int) -> tuple[IntArray, NDArray[np.float32]]:
    """`area` and `box` from one decoding."""
    foreground = _foreground(decode_runs(rles, height, width))
    return _areas(foreground, len(rles)), _boxes(foreground, len(rles), height)


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
    column, top, bottom, owner = _split_columns(_foreground(decode_runs(rles, height, width)), height)
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
    column, first, last, owner = _split_columns(_foreground(decode_runs(rles, height, width)), height)
    base = (column + left) * new_height + top
    return encode_intervals(Intervals(base + first, base + last, owner), len(rles), new_height, new_width)


def flip(rles: Sequence[bytes], height: int, width: int) -> list[bytes]:
    """The masks of the image mirrored left to right."""
    column, top, bottom, owner = _split_columns(_foreground(decode_runs(rles, height, width)), height)
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


def to_coco(rles: Sequence[bytes], height: int, width: int) -> list[dict[str, Any]]:
    """The masks as pycocotools takes them."""
    return [{"size": [height, width], "counts": counts} for counts in rles]


def check(rles: Sequence[bytes], height: int, width: int) -> None:
    """Raises `MaskError` where counts do not describe a mask of this image size."""
    decode_runs(rles, height, width)


def decode_runs(rles: Sequence[bytes], height: int, width: int) -> Runs:
    """Run boundaries of many masks in one pass.

    Raises:
        MaskError: for an image without or with too many pixels; for counts that are empty, truncated, hold other
            characters than the format's, are negative, or do not add up to the image's pixels.
    """
    pixels = _pixels(height, width)
    if not len(rles):
        return Runs(np.zeros(0, np.int64), np.zeros(1, np.int64))
    numbers, first = _decode_numbers(rles)
    counts = _undo_differences(numbers, first)
    _refuse(
        first, (counts < 0) | (counts > pixels), rles, f"a run is negative or longer than {height} x {width} pixels"
    )
    ends = np.cumsum(counts)
    before = np.concatenate([[0], ends[first[1:-1] - 1]])
    ends -= np.repeat(before, np.diff(first))
    wrong = ends[first[1:] - 1] != pixels
    if wrong.any():
        i = int(np.argmax(wrong))
        raise MaskError(
            f"mask {i} does not fit its image: its runs cover {ends[first[i + 1] - 1]} pixels, "
            f"{height} x {width} has {pixels}"
        )
    return Runs(ends, first)


def encode_intervals(intervals: Intervals, count: int, height: int, width: int) -> list[bytes]:
    """The compressed counts of `count` masks. Intervals come sorted by owner, then start, and do not overlap."""
    pixels = _pixels(height, width)
    start, stop, owner = _join_touching(intervals)
    per_mask = np.bincount(owner, minlength=count)
    last = np.cumsum(per_mask) - 1
    reaches_end = (per_mask > 0) & (stop[last] == pixels) if len(stop) else np.zeros(count, bool)
    first = np.concatenate(
        [[0], np.cumsum(2 * per_mask + ~reaches_end)]
    )  # a mask ends with background unless it fills up
    ends = np.full(first[-1], pixels, np.int64)
    where = 2 * np.arange(len(owner)) + np.concatenate([[0], np.cumsum(~reaches_end)])[owner]
    ends[where], ends[where + 1] = start, stop
    counts = np.diff(ends, prepend=0)
    counts[first[:-1]] = ends[first[:-1]]
    return _encode_numbers(_differences(counts, first), first)


def _decode_numbers(rles: Sequence[bytes]) -> tuple[IntArray, IntArray]:
    """The signed numbers in the characters, and the first number of each mask (N + 1,)."""
    lengths = np.fromiter(map(len, rles), np.int64, len(rles))
    if not lengths.all():
        raise MaskError(f"mask {int(np.argmin(lengths))} has no counts at all; an empty mask is one run of background")
    groups = np.frombuffer(b"".join(rles), np.uint8) - np.uint8(_FIRST_CHARACTER)  # wraps around below the first
    mask_stop = np.cumsum(lengths)
    ends_number = (groups & _MORE) == 0
    last = np.flatnonzero(ends_number)
    first = np.concatenate([[0], np.cumsum(ends_number)[mask_stop - 1]])
    if groups.max() > _MORE + _FIVE_BITS:
        i = int(np.searchsorted(mask_stop, np.argmax(groups > _MORE + _FIVE_BITS), side="right"))
        raise MaskError(f"mask {i} holds characters that compressed counts never have: {_shown(rles[i])}")
    if not ends_number[mask_stop - 1].all():
        i = int(np.argmin(ends_number[mask_stop - 1]))
        raise MaskError(f"the counts of mask {i} break off in the middle of a number: {_shown(rles[i])}")
    size = np.diff(last, prepend=-1)
    _refuse(first, size > _MAX_GROUPS, rles, f"a number is longer than {_MAX_GROUPS} characters")
    numbers = (groups[last] & _FIVE_BITS).astype(np.int64)
    numbers -= (numbers & _SIGN) << 1
    for k in range(1, int(size.max())):
        longer = np.flatnonzero(size > k)
        numbers[longer] = (numbers[longer] << 5) | (groups[last[longer] - k] & _FIVE_BITS)
    return numbers, first


def _encode_numbers(numbers: IntArray, first: IntArray) -> list[bytes]:
    """The inverse of `_decode_numbers`, each number in as few characters as keep its sign."""
    magnitude = numbers ^ (numbers >> 63)
    size = np.ones(len(numbers), np.int64)
    for k in range(1, _MAX_GROUPS):
        size += magnitude >= 1 << (5 * k - 1)
    stop = np.concatenate([[0], np.cumsum(size)])
    text = np.empty(stop[-1], np.uint8)
    for k in range(int(size.max(initial=0))):
        longer = np.flatnonzero(size > k)
        group = (numbers[longer] >> 5 * k) & _FIVE_BITS
        text[stop[longer] + k] = group + np.where(size[longer] > k + 1, _MORE, 0) + _FIRST_CHARACTER
    joined, cuts = text.tobytes(), stop[first].tolist()
    return [joined[a:b] for a, b in itertools.pairwise(cuts)]


def _undo_differences(numbers: IntArray, first: IntArray) -> IntArray:
    """Counts from numbers: from index 3 of a mask on, a number is the difference to the count two before.

    The even and the odd counts of a mask are thus two running sums (count 0 stands alone), taken as two columns.
    """
    per_mask = np.diff(first)
    rows = (per_mask + 1) // 2
    first_row = np.concatenate([[0], np.cumsum(rows)])
    place = np.arange(len(numbers)) + np.repeat(2 * first_row[:-1] - first[:-1], per_mask)
    table = np.zeros(2 * first_row[-1], np.int64)
    table[place] = numbers
    table[2 * first_row[:-1]] = 0
    sums = np.cumsum(table.reshape(-1, 2), axis=0)
    before = np.concatenate([np.zeros((1, 2), np.int64), sums[first_row[1:-1] - 1]])
    counts = (sums - np.repeat(before, rows, axis=0)).ravel()[place]
    counts[first[:-1]] = numbers[first[:-1]]
    return counts


def _differences(counts: IntArray, first: IntArray) -> IntArray:
    """The inverse of `_undo_differences`."""
    numbers = counts.copy()
    index = np.arange(len(counts)) - np.repeat(first[:-1], np.diff(first))
    later = np.flatnonzero(index > 2)
    numbers[later] -= counts[later - 2]
    return numbers


def _foreground(runs: Runs) -> Intervals:
    per_mask = np.diff(runs.first)
    owner = np.repeat(np.arange(len(per_mask)), per_mask)
    index = np.arange(len(runs.ends)) - runs.first[owner]
    odd = np.flatnonzero(index & 1)
    start, stop = runs.ends[odd - 1], runs.ends[odd]
    kept = start < stop  # other encoders may leave runs of length 0
    return Intervals(start[kept], stop[kept], owner[odd][kept])


def _no_intervals() -> Intervals:
    none = np.zeros(0, np.int64)
    return Intervals(none, none, none)


def _join_touching(intervals: Intervals) -> Intervals:
    start, stop, owner = intervals
    joins = (start[1:] == stop[:-1]) & (owner[1:] == owner[:-1])
    begins, finishes = np.ones(len(start), bool), np.ones(len(start), bool)
    begins[1:], finishes[:-1] = ~joins, ~joins
    return Intervals(start[begins], stop[finishes], owner[begins])


def _split_columns(intervals: Intervals, height: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Pieces that lie in one column each: column, top, bottom (exclusive), owner."""
    first = intervals.start // height
    last = (intervals.stop - 1) // height
    pieces = last - first + 1
    source = np.repeat(np.arange(len(pieces)), pieces)
    column = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[source]
    top = np.maximum(intervals.start[source] - column * height, 0)
    bottom = np.minimum(intervals.stop[source] - column * height, height)
    return column, top, bottom, intervals.owner[source]


def _areas(foreground: Intervals, count: int) -> IntArray:
    areas = np.zeros(count, np.int64)
    np.add.at(areas, foreground.owner, foreground.stop - foreground.start)
    return areas


def _boxes(foreground: Intervals, count: int, height: int) -> NDArray[np.float32]:
    boxes = np.zeros((count, 4), np.float32)
    start, stop, owner = foreground
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


def _pixels(height: int, width: int) -> int:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise MaskError(
            f"an image of {height} x {width} pixels cannot hold masks: 1 to {MAX_PIXELS} pixels are possible"
        )
    return height * width


def _refuse(first: IntArray, bad: NDArray[np.bool_], rles: Sequence[bytes], why: str) -> None:
    if bad.any():
        i = int(np.searchsorted(first, np.argmax(bad), side="right")) - 1
        raise MaskError(f"the counts of mask {i} are damaged: {why}: {_shown(rles[i])}")


def _shown(counts: bytes) -> str:
    return repr(counts if len(counts) <= 40 else counts[:40] + b"...")
