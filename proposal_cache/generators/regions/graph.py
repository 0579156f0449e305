"""Region adjacency graph of an over-segmentation, with features of regions and borders."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_BINS = 9  # per histogram
_HISTOGRAMS = 4  # L, a, b, gradient direction
_AB_LIMIT = 32.0  # larger values of a and b share the outer bins
_WEAK, _STRONG = 1.0, 4.0  # thresholds of the gradient of L between no, weak and strong texture
_SCALES = (0.8, 2.5)  # of contours, in pixels: the fine scale detects thin objects, the coarse one ignores texture


@dataclass(frozen=True)
class RegionGraph:
    """R regions and E borders. All features are sums, so merging regions or borders adds their rows.

    Attributes:
        regions: (R, 40) area in pixels; sums of L, a, b; four histograms of 9 counts each.
        first, second: (E,) the two regions of each border, first < second.
        borders: (E, 3) length in pixel sides; sums of the Lab gradient along it at a fine and at a coarse scale.
    """

    regions: FloatArray
    first: IntArray
    second: IntArray
    borders: FloatArray


def region_graph(image: NDArray[np.uint8], labels: IntArray) -> RegionGraph:
    """Compute the graph of an over-segmentation.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) region of each pixel, 0..R-1, each with at least one pixel.
    """
    lab = np.ascontiguousarray(rgb2lab(image).astype(np.float32).transpose(2, 0, 1))
    contours, direction = _contours(lab)
    first, second, borders = _borders(labels, contours)
    return RegionGraph(_regions(labels, lab, direction), first, second, borders)


def dissimilarity(
    one: FloatArray, others: FloatArray, borders: FloatArray, colour: float, texture: float, contour: float
) -> FloatArray:
    """Return the dissimilarity of M pairs of regions, (M,): a weighted sum of colour, texture and contour terms.

    Args:
        one: (40,) or (M, 40) rows of `RegionGraph.regions`.
        others: (M, 40) their neighbours.
        borders: (M, 3) the borders between them.
        colour, texture, contour: weights; the terms have similar magnitudes.
    """
    gap = np.abs(one[..., 1:] / one[..., :1] - others[:, 1:] / others[:, :1])
    steps = borders[:, 1:] / borders[:, :1]
    return (
        colour * (gap[:, 0] / 20 + np.hypot(gap[:, 1], gap[:, 2]) / 10)
        + texture * gap[:, 3:].sum(-1) / 2
        + contour * (np.minimum(steps[:, 0] / 5, 3) * 1.2 + np.minimum(steps[:, 1] / 3, 3))
    )


def _contours(lab: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return gradient magnitudes at both scales (2, H, W), and the direction bin of L (H, W), 0 without gradient."""
    magnitudes = []
    for scale in _SCALES:
        smooth = np.stack([ndimage.gaussian_filter(channel, scale) for channel in lab])
        dy, dx = (ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (1, 2))
        magnitudes.append(np.sqrt((dy * dy + dx * dx).sum(0)))
        if scale == _SCALES[0]:
            strength = np.hypot(dx[0], dy[0])
            quarter = ((np.arctan2(dy[0], dx[0]) % np.pi) / np.pi * 4).astype(np.int64) % 4
            direction = np.where(strength < _WEAK, 0, 1 + quarter + 4 * (strength > _STRONG))
    return np.stack(magnitudes), direction


def _regions(labels: IntArray, lab: NDArray[np.float32], direction: NDArray[np.int64]) -> FloatArray:
    count = int(labels.max()) + 1
    flat = labels.ravel()
    columns = [np.bincount(flat, minlength=count)[:, None]]
    columns += [np.bincount(flat, channel.ravel(), count)[:, None] for channel in lab]
    scaled = [lab[0] / 100, *((lab[1:] + _AB_LIMIT) / (2 * _AB_LIMIT))]
    binned = [np.clip(values * (_BINS - 1), 0, _BINS - 2).astype(np.int64) for values in scaled]
    for bins in [*binned, direction]:
        counts = np.bincount(flat * _BINS + bins.ravel(), minlength=count * _BINS)
        columns.append(counts.reshape(count, _BINS))
    return np.concatenate(columns, axis=1).astype(np.float64)


def _borders(labels: IntArray, contours: NDArray[np.float32]) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the pairs of adjacent regions, and the features of their borders."""
    sides: list[tuple[Any, Any]] = [
        (np.s_[..., :, :-1], np.s_[..., :, 1:]),
        (np.s_[..., :-1, :], np.s_[..., 1:, :]),
    ]
    pairs, steps = [], []
    for here, there in sides:
        differ = labels[here] != labels[there]
        pairs.append(np.stack([labels[here][differ], labels[there][differ]]))
        steps.append(np.maximum(contours[here], contours[there])[:, differ])
    pair, step = np.concatenate(pairs, axis=1), np.concatenate(steps, axis=1)
    count = int(labels.max()) + 1
    codes, owner = np.unique(pair.min(0) * count + pair.max(0), return_inverse=True)
    sums = [np.bincount(owner, minlength=len(codes)), *(np.bincount(owner, s, len(codes)) for s in step)]
    return codes // count, codes % count, np.stack(sums, axis=1).astype(np.float64)
