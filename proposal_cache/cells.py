"""The cells into which overlapping masks cut an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache._runs import IntArray, Intervals, decode_runs, foreground


@dataclass(frozen=True)
class Cells:
    """The pixels that lie in the same masks are one cell: what follows from the masks is worked out once a cell.

    Attributes:
        height, width: of the image.
        starts: (S,) the column-major pixel indices where one cell's run of pixels ends and another's begins; the first
            is 0.
        cell: (S,) whose run it is.
        covers: (A, N) bool, which masks cover a cell; no two rows are equal.
    """

    height: int
    width: int
    starts: IntArray
    cell: IntArray
    covers: NDArray[np.bool_]

    @classmethod
    def of_masks(cls, rles: Sequence[bytes], height: int, width: int) -> "Cells":
        """Cut an image along the borders of N masks, all in one sweep over their runs."""
        inside = foreground(decode_runs(rles, height, width))
        pixels = height * width
        starts = np.unique(np.concatenate([[0], inside.start, inside.stop[inside.stop < pixels]]))
        first, last = np.searchsorted(starts, inside.start), np.searchsorted(starts, inside.stop)
        spans = Intervals(first, last, inside.owner)
        _, example, cell = np.unique(_signatures(spans, len(starts), len(rles)), return_index=True, return_inverse=True)
        order = np.argsort(example)  # number the cells as they come
        return cls(height, width, starts, np.argsort(order)[cell], _covers(spans, example[order], len(rles)))

    @property
    def areas(self) -> IntArray:
        """(A,) pixels in each cell."""
        areas = np.zeros(len(self.covers), np.int64)
        np.add.at(areas, self.cell, self._lengths())
        return areas

    def paint(self, values: NDArray[Any]) -> NDArray[Any]:
        """(A, ...) of cells to (H, W, ...) of pixels."""
        pixels = np.repeat(values[self.cell], self._lengths(), axis=0)
        return np.ascontiguousarray(pixels.reshape(self.width, self.height, *values.shape[1:]).swapaxes(0, 1))

    def _lengths(self) -> IntArray:
        """(S,) pixels of each run."""
        return np.diff(self.starts, append=self.height * self.width)


def _signatures(spans: Intervals, count: int, masks: int) -> NDArray[np.uint64]:
    """(count,) of each run the sum of random numbers of its masks: equal where the masks are, and there alone (but for
    one chance in 2^64 a pair)."""
    numbers = np.random.default_rng(0).integers(0, 2**64, masks, dtype=np.uint64)[spans.owner]
    change = np.zeros(count + 1, np.uint64)
    np.add.at(change, spans.start, numbers)
    np.subtract.at(change, spans.stop, numbers)
    return np.cumsum(change[:-1])


def _covers(spans: Intervals, examples: IntArray, masks: int) -> NDArray[np.bool_]:
    """(A, masks): which masks cover the runs `examples`, which ascend."""
    begins, ends = np.searchsorted(examples, spans.start), np.searchsorted(examples, spans.stop)
    change = np.zeros((len(examples) + 1, masks), np.int8)
    np.add.at(change, (begins, spans.owner), 1)
    np.subtract.at(change, (ends, spans.owner), 1)
    return np.cumsum(change, axis=0, out=change)[:-1].view(bool)
