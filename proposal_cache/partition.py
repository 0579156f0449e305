"""Partition of an image into the atomic regions of overlapping masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.rle.codec import IntArray, Intervals


@dataclass(frozen=True)
class Partition:
    """Atomic regions of an image: two pixels share a region if exactly the same masks cover them.

    Per-pixel results that depend on the masks alone need to be computed only once per region.

    """

    height: int  # of the image, in pixels
    width: int
    starts: IntArray  # (S,) column-major pixel indices at which the region changes, ascending; the first is 0
    region: IntArray  # (S,) region of each run of pixels, 0..A-1
    membership: NDArray[np.bool_]  # (A, N) which masks cover each region; no two rows are equal

    @classmethod
    def of_masks(cls, intervals: Intervals, count: int, height: int, width: int) -> "Partition":
        """Compute the partition of `count` masks, given by their foreground runs, in one sweep over these."""
        pixels = height * width
        starts = np.unique(np.concatenate([[0], intervals.start, intervals.stop[intervals.stop < pixels]]))
        first, last = np.searchsorted(starts, intervals.start), np.searchsorted(starts, intervals.stop)
        spans = Intervals(first, last, intervals.owner)
        signatures = _signatures(spans, len(starts), count)
        _, example, region = np.unique(signatures, return_index=True, return_inverse=True)
        order = np.argsort(example)  # number regions by their first pixel
        return cls(height, width, starts, np.argsort(order)[region], _membership(spans, example[order], count))

    @property
    def areas(self) -> IntArray:
        """(A,) pixels in each region."""
        return np.bincount(self.region, self._lengths(), len(self.membership)).astype(np.int64)

    def overlaps(self, intervals: Intervals, count: int) -> NDArray[np.float64]:
        """Return how many pixels of each of `count` other masks, given by their runs, are in each region, (count, A).

        The numbers are whole; as floats, they can be multiplied by matrices fast.
        """
        stops = np.append(self.starts[1:], self.height * self.width)
        first = np.searchsorted(self.starts, intervals.start, side="right") - 1
        pieces = np.searchsorted(self.starts, intervals.stop) - first
        source = np.repeat(np.arange(len(first)), pieces)
        run = np.arange(len(source)) + np.repeat(first - (np.cumsum(pieces) - pieces), pieces)
        pixels = np.minimum(stops[run], intervals.stop[source]) - np.maximum(self.starts[run], intervals.start[source])
        regions = len(self.membership)
        cell = intervals.owner[source] * regions + self.region[run]
        return np.bincount(cell, pixels, count * regions).astype(np.float64).reshape(count, regions)

    def paint(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return per-pixel values (H, W, ...) from per-region values (A, ...)."""
        pixels = np.repeat(values[self.region], self._lengths(), axis=0)
        return np.ascontiguousarray(pixels.reshape(self.width, self.height, *values.shape[1:]).swapaxes(0, 1))

    def _lengths(self) -> IntArray:
        """Return the pixels in each run, (S,)."""
        return np.diff(self.starts, append=self.height * self.width)


def _signatures(spans: Intervals, count: int, masks: int) -> NDArray[np.uint64]:
    """Return a hash of the set of masks that cover each run, (count,).

    The hash is a sum of one random number per mask; two different sets collide with probability 2^-64.
    """
    numbers = np.random.default_rng(0).integers(0, 2**64, masks, dtype=np.uint64)[spans.owner]
    change = np.zeros(count + 1, np.uint64)
    np.add.at(change, spans.start, numbers)
    np.subtract.at(change, spans.stop, numbers)
    return np.cumsum(change[:-1])


def _membership(spans: Intervals, examples: IntArray, masks: int) -> NDArray[np.bool_]:
    """Return which masks cover each of the runs `examples` (ascending), (A, masks)."""
    begins, ends = np.searchsorted(examples, spans.start), np.searchsorted(examples, spans.stop)
    change = np.zeros((len(examples) + 1, masks), np.int8)
    np.add.at(change, (begins, spans.owner), 1)
    np.subtract.at(change, (ends, spans.owner), 1)
    return np.cumsum(change, axis=0, out=change)[:-1].view(bool)
