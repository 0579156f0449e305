"""Region adjacency graph of an over-segmentation, with features of regions and borders."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_BINS = 9  # per histogram
_AB_LIMIT = 32.0  # larger values of a and b share the outer bins
_WEAK, _STRONG = 1.0, 4.0  # thresholds of the gradient of L between no, weak and strong texture

# Columns of `RegionGraph.regions`; the embedding follows.
AREA, LIGHTNESS, A, B = range(4)
COLOUR_HISTOGRAMS = slice(4, 4 + 3 * _BINS)
TEXTURE_HISTOGRAM = slice(COLOUR_HISTOGRAMS.stop, COLOUR_HISTOGRAMS.stop + _BINS)
EMBEDDING = slice(TEXTURE_HISTOGRAM.stop, None)

# Columns of `RegionGraph.borders`.
LENGTH, STRENGTH, SQUARE = 0, 1, 2


@dataclass(frozen=True)
class RegionGraph:
    """R regions and E borders. All features are sums, so merging regions or borders adds their rows.

    Attributes:
        regions: (R, 40 + D) area in pixels; sums of L, a, b; histograms of L, a, b and gradient direction, 9 counts
            each; sum of the embedding.
        first, second: (E,) the two regions of each border, first < second.
        borders: (E, 3) length in pixel sides; sums of the boundary probability and of its square along it.
    """

    regions: FloatArray
    first: IntArray
    second: IntArray
    borders: FloatArray


def region_graph(
    lab: NDArray[np.float32], labels: IntArray, boundary: NDArray[np.float32], embedding: NDArray[np.float32]
) -> RegionGraph:
    """Compute the graph of an over-segmentation.

    Args:
        lab: (3, H, W) image in Lab.
        labels: (H, W) region of each pixel, 0..R-1, each with at least one pixel.
        boundary: (H, W) boundary probability.
        embedding: (D, H / 4, W / 4), rounded up.
    """
    first, second, borders = _borders(labels, boundary)
    return RegionGraph(_regions(labels, lab, embedding), first, second, borders)


def _regions(labels: IntArray, lab: NDArray[np.float32], embedding: NDArray[np.float32]) -> FloatArray:
    count = int(labels.max()) + 1
    flat = labels.ravel()
    columns = [np.bincount(flat, minlength=count)]
    columns += [np.bincount(flat, channel.ravel(), count) for channel in lab]
    scaled = [lab[0] / 100, (lab[1] + _AB_LIMIT) / (2 * _AB_LIMIT), (lab[2] + _AB_LIMIT) / (2 * _AB_LIMIT)]
    binned = [np.clip(values * (_BINS - 1), 0, _BINS - 2).astype(np.int64) for values in scaled]
    histograms = [
        np.bincount(flat * _BINS + bins.ravel(), minlength=count * _BINS).reshape(count, _BINS)
        for bins in [*binned, _gradient_direction(lab[0])]
    ]
    return np.concatenate(
        [np.stack(columns, axis=1), *histograms, _embedding_sums(flat, labels.shape, embedding, count)], axis=1
    ).astype(np.float64)


def _embedding_sums(
    flat: IntArray, shape: tuple[int, ...], embedding: NDArray[np.float32], count: int
) -> NDArray[np.float64]:
    """Return the sum of the embedding over the pixels of each region, (count, D)."""
    cells = embedding.shape[1] * embedding.shape[2]
    rows, columns = (np.arange(side) // 4 for side in shape)
    cell = (rows[:, None] * embedding.shape[2] + columns).ravel()
    # Pixels of each (region, cell of the embedding): a sparse matrix, times the embedding.
    pairs, pixels = np.unique(flat * cells + cell, return_counts=True)
    region, values = pairs // cells, embedding.reshape(len(embedding), cells)[:, pairs % cells]
    return np.stack([np.bincount(region, pixels * channel, count) for channel in values], axis=1)


def _gradient_direction(lightness: NDArray[np.float32]) -> IntArray:
    """Return the bin of the gradient of L (H, W): 0 if weak, else by direction and strength."""
    smooth = ndimage.gaussian_filter(lightness, 0.8)
    dy, dx = (ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1))
    strength = np.hypot(dx, dy)
    quarter = ((np.arctan2(dy, dx) % np.pi) / np.pi * 4).astype(np.int64) % 4
    return np.where(strength < _WEAK, 0, 1 + quarter + 4 * (strength > _STRONG))


def _borders(labels: IntArray, boundary: NDArray[np.float32]) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the pairs of adjacent regions, and the features of their borders."""
    sides: list[tuple[Any, Any]] = [(np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :])]
    pairs, strengths = [], []
    for here, there in sides:
        differ = labels[here] != labels[there]
        pairs.append(np.stack([labels[here][differ], labels[there][differ]]))
        strengths.append(np.maximum(boundary[here], boundary[there])[differ])
    pair, strength = np.concatenate(pairs, axis=1), np.concatenate(strengths)
    count = int(labels.max()) + 1
    codes, owner = np.unique(pair.min(0) * count + pair.max(0), return_inverse=True)
    sums = [np.bincount(owner, values, len(codes)) for values in (np.ones(len(owner)), strength, strength**2)]
    return codes // count, codes % count, np.stack(sums, axis=1)
