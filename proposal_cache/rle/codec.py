"""COCO-compressed counts as run boundaries and back, many masks at one stroke.

The counts of a mask are the lengths of its runs of background and foreground, in turn and beginning with background,
down the columns of the image; each a signed number in groups of five bits (from the fourth on, the difference to the
length two before), each group one character.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def check(rles: Sequence[bytes], height: int, width: int) -> None:
    """Raise MaskError if counts do not describe a mask of this image size."""
    decode_runs(rles, height, width)


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


def foreground(runs: Runs) -> Intervals:
    per_mask = np.diff(runs.first)
    owner = np.repeat(np.arange(len(per_mask)), per_mask)
    index = np.arange(len(runs.ends)) - runs.first[owner]
    odd = np.flatnonzero(index & 1)
    start, stop = runs.ends[odd - 1], runs.ends[odd]
    kept = start < stop  # other encoders may leave runs of length 0
    return Intervals(start[kept], stop[kept], owner[odd][kept])


def split_columns(intervals: Intervals, height: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Pieces that lie in one column each: column, top, bottom (exclusive), owner."""
    first = intervals.start // height
    last = (intervals.stop - 1) // height
    pieces = last - first + 1
    source = np.repeat(np.arange(len(pieces)), pieces)
    column = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[source]
    top = np.maximum(intervals.start[source] - column * height, 0)
    bottom = np.minimum(intervals.stop[source] - column * height, height)
    return column, top, bottom, intervals.owner[source]


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


def _join_touching(intervals: Intervals) -> Intervals:
    start, stop, owner = intervals
    joins = (start[1:] == stop[:-1]) & (owner[1:] == owner[:-1])
    begins, finishes = np.ones(len(start), bool), np.ones(len(start), bool)
    begins[1:], finishes[:-1] = ~joins, ~joins
    return Intervals(start[begins], stop[finishes], owner[begins])


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
