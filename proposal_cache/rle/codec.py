"""Encoding and decoding of COCO's compressed counts, vectorized over many masks.

Counts are the lengths of the alternating runs of background and foreground, starting with background, in column-major
order. From the fourth on, each is stored as the difference to the count two before. A number is written in groups of
five bits, least significant first, one character per group; bit 0x20 marks that more groups follow.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from proposal_cache.errors import MaskError, abbreviate

MAX_PIXELS = 2**31 - 1  # per image: pycocotools counts pixels in 32 bits

_MAX_GROUPS = 7  # 35 bits hold every difference of two counts
_MORE, _SIGN, _FIVE_BITS, _FIRST_CHARACTER = 0x20, 0x10, 0x1F, 48

IntArray = NDArray[np.int64]


class Runs(NamedTuple):
    """Run boundaries of N masks; those of mask i are `ends[first[i]:first[i + 1]]`, even ones are background."""

    ends: IntArray  # (R,) column-major pixel index at which each run ends; the last one of a mask is height * width
    first: IntArray  # (N + 1,) index of each mask's first run


class Intervals(NamedTuple):
    """Foreground runs: mask `owner[k]` covers the column-major pixel indices `start[k]:stop[k]`."""

    start: IntArray
    stop: IntArray
    owner: IntArray


def decode_runs(rles: Sequence[bytes], height: int, width: int) -> Runs:
    """Decode N masks to run boundaries.

    >>> rle.decode_runs([b"522"], height=3, width=3).ends
    array([5, 7, 9])

    Raises MaskError if the image has no or too many pixels, or if counts are empty, truncated, negative, contain
    invalid characters, or do not sum to height * width.
    """
    pixels = require_size(height, width)
    if not len(rles):
        return Runs(np.zeros(0, np.int64), np.zeros(1, np.int64))
    numbers, first = _decode_numbers(rles)
    counts = _undo_differences(numbers, first)
    _raise_for_first(
        (counts < 0) | (counts > pixels), first, rles, f"a run is negative or longer than {height} x {width} pixels"
    )
    ends = np.cumsum(counts)
    before = np.concatenate([[0], ends[first[1:-1] - 1]])
    ends -= np.repeat(before, np.diff(first))
    wrong = ends[first[1:] - 1] != pixels
    if wrong.any():
        i = int(np.argmax(wrong))
        raise MaskError(
            f"mask {i} does not match the image size: its runs cover {ends[first[i + 1] - 1]} pixels, "
            f"the image has {height} x {width} = {pixels}"
        )
    return Runs(ends, first)


def check(rles: Sequence[bytes], height: int, width: int) -> None:
    """Raise MaskError if counts do not describe a mask of this image size.

    >>> rle.check([b"522"], height=3, width=2)
    Traceback (most recent call last):
    proposal_cache.errors.MaskError: mask 0 does not match the image size: its runs cover 7 pixels, ...
    """
    decode_runs(rles, height, width)


def encode(masks: NDArray[Any]) -> list[bytes]:
    """Encode binary masks (N, H, W), of any type; nonzero is foreground.

    >>> rle.encode(np.eye(3, dtype=bool)[None])
    [b'013000']
    """
    return [coco.encode(np.asfortranarray(mask != 0, np.uint8))["counts"] for mask in masks]


def decode(rles: Sequence[bytes], height: int, width: int) -> NDArray[np.bool_]:
    """Decode masks to (N, height, width) bool.

    >>> rle.decode([b"522"], height=3, width=3)[0].astype(int)
    array([[0, 0, 1],
           [0, 0, 0],
           [0, 1, 0]])
    """
    check(rles, height, width)
    if not rles:
        return np.zeros((0, height, width), bool)
    return coco.decode(to_coco(rles, height, width)).astype(bool).transpose(2, 0, 1)


def to_coco(rles: Sequence[bytes], height: int, width: int) -> list[dict[str, Any]]:
    """Return masks as pycocotools represents them.

    >>> rle.to_coco([b"522"], height=3, width=3)
    [{'size': [3, 3], 'counts': b'522'}]
    """
    return [{"size": [height, width], "counts": counts} for counts in rles]


def encode_intervals(intervals: Intervals, count: int, height: int, width: int) -> list[bytes]:
    """Encode `count` masks given by their foreground runs, sorted by owner, then start, without overlaps."""
    pixels = require_size(height, width)
    start, stop, owner = intervals
    apart = (start[1:] != stop[:-1]) | (owner[1:] != owner[:-1])  # runs of one mask that touch become one
    begins, ends = (np.r_[edges][: len(start)] for edges in ((True, apart), (apart, True)))
    start, stop, owner = start[begins], stop[ends], owner[begins]
    per_mask = np.bincount(owner, minlength=count)
    last = np.cumsum(per_mask) - 1
    reaches_end = (per_mask > 0) & (stop[last] == pixels) if len(stop) else np.zeros(count, bool)
    # A mask ends with a background run unless its foreground includes the last pixel.
    first = np.concatenate([[0], np.cumsum(2 * per_mask + ~reaches_end)])
    ends = np.full(first[-1], pixels, np.int64)
    position = 2 * np.arange(len(owner)) + np.concatenate([[0], np.cumsum(~reaches_end)])[owner]
    ends[position], ends[position + 1] = start, stop
    counts = np.diff(ends, prepend=0)
    counts[first[:-1]] = ends[first[:-1]]
    size = [height, width]
    masks = [{"size": size, "counts": counts[a:b]} for a, b in itertools.pairwise(first.tolist())]
    return [mask["counts"] for mask in coco.frPyObjects(masks, height, width)] if masks else []


def decode_intervals(rles: Sequence[bytes], height: int, width: int) -> Intervals:
    """Decode N masks to foreground runs, sorted by owner, then start; errors as `decode_runs`.

    >>> rle.decode_intervals([b"522"], height=3, width=3)
    Intervals(start=array([5]), stop=array([7]), owner=array([0]))
    """
    runs = decode_runs(rles, height, width)
    per_mask = np.diff(runs.first)
    owner = np.repeat(np.arange(len(per_mask)), per_mask)
    index = np.arange(len(runs.ends)) - runs.first[owner]
    odd = np.flatnonzero(index & 1)
    start, stop = runs.ends[odd - 1], runs.ends[odd]
    kept = start < stop  # some encoders write runs of length 0
    return Intervals(start[kept], stop[kept], owner[odd][kept])


def select_intervals(intervals: Intervals, count: int, positions: IntArray) -> Intervals:
    """Return the foreground runs of some of `count` masks, in the order of their positions.

    >>> rle.select_intervals(rle.decode_intervals([b"521", b"08"], 2, 4), 2, np.array([1, 1])).owner
    array([0, 1])
    """
    first = np.searchsorted(intervals.owner, np.arange(count + 1))
    lengths = np.diff(first)[positions]
    index = np.arange(lengths.sum()) + np.repeat(first[positions] - (np.cumsum(lengths) - lengths), lengths)
    owner = np.repeat(np.arange(len(positions)), lengths)
    return Intervals(intervals.start[index], intervals.stop[index], owner)


def _decode_numbers(rles: Sequence[bytes]) -> tuple[IntArray, IntArray]:
    """Return the signed numbers of all masks, and the index of each mask's first number (N + 1,)."""
    lengths = np.fromiter(map(len, rles), np.int64, len(rles))
    masks = np.arange(len(rles) + 1)
    _raise_for_first(lengths == 0, masks, rles, "empty counts (a mask without pixels has one background run)")
    groups = np.frombuffer(b"".join(rles), np.uint8) - np.uint8(_FIRST_CHARACTER)  # wraps around below it
    stop = np.cumsum(lengths)
    _raise_for_first(groups > _MORE + _FIVE_BITS, np.append(0, stop), rles, "invalid characters")
    ends_number = (groups & _MORE) == 0
    _raise_for_first(~ends_number[stop - 1], masks, rles, "they end inside a number")
    last = np.flatnonzero(ends_number)
    first = np.concatenate([[0], np.cumsum(ends_number)[stop - 1]])
    size = np.diff(last, prepend=-1)
    _raise_for_first(size > _MAX_GROUPS, first, rles, f"a number is longer than {_MAX_GROUPS} characters")
    numbers = (groups[last] & _FIVE_BITS).astype(np.int64)
    numbers -= (numbers & _SIGN) << 1
    for k in range(1, int(size.max())):
        longer = np.flatnonzero(size > k)
        numbers[longer] = (numbers[longer] << 5) | (groups[last[longer] - k] & _FIVE_BITS)
    return numbers, first


def _undo_differences(numbers: IntArray, first: IntArray) -> IntArray:
    """Return counts from stored numbers: from index 3 of a mask on, a number is the difference to the count two before.

    Counts at even and at odd indices are therefore two cumulative sums, computed as two columns of a table. Count 0 is
    in neither.
    """
    per_mask = np.diff(first)
    rows = (per_mask + 1) // 2
    first_row = np.concatenate([[0], np.cumsum(rows)])
    position = np.arange(len(numbers)) + np.repeat(2 * first_row[:-1] - first[:-1], per_mask)
    table = np.zeros(2 * first_row[-1], np.int64)
    table[position] = numbers
    table[2 * first_row[:-1]] = 0
    sums = np.cumsum(table.reshape(-1, 2), axis=0)
    before = np.concatenate([np.zeros((1, 2), np.int64), sums[first_row[1:-1] - 1]])
    counts = (sums - np.repeat(before, rows, axis=0)).ravel()[position]
    counts[first[:-1]] = numbers[first[:-1]]
    return counts


def require_size(height: int, width: int) -> int:
    """Return the number of pixels of an image; raise MaskError if it has none or too many."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise MaskError(f"image size {height} x {width} is not supported: must have 1 to {MAX_PIXELS} pixels")
    return height * width


def _raise_for_first(bad: NDArray[np.bool_], first: IntArray, rles: Sequence[bytes], reason: str) -> None:
    """Raise MaskError for the mask of the first bad element, if any; those of mask i begin at `first[i]`."""
    if bad.any():
        i = int(np.searchsorted(first, np.argmax(bad), side="right")) - 1
        raise MaskError(f"the counts of mask {i} are damaged: {reason}: {abbreviate(rles[i])}")
