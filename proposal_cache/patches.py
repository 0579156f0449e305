"""Patches of one image: the value that generators return, the cache stores and models read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.partition import Partition

SAMPLES_PER_BIN = 4  # per axis, in `roi_masks`

_Arrays = TypeVar("_Arrays", bound=Sequence[NDArray[Any]])

_COLUMNS: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] = (
    ("boxes", np.dtype(np.float32), (4,)),
    ("areas", np.dtype(np.int64), ()),
    ("predicted_iou", np.dtype(np.float32), ()),
    ("stability_score", np.dtype(np.float32), ()),
    ("source", np.dtype(np.uint8), ()),
)


@dataclass(frozen=True, eq=False)
class Patches:
    """N masks of one image with boxes, areas and scores; immutable. N may be 0.

    Create one with `from_masks` or `from_rles`, which compute boxes and areas.

    >>> masks = np.zeros((2, 4, 6), dtype=bool)
    >>> masks[0, :, :3] = True
    >>> masks[1, :2, 2:4] = True
    >>> patches = Patches.from_masks(masks, predicted_iou=[0.9, 0.8])
    >>> patches.areas, patches.boxes[1]
    (array([12,  4]), array([2., 0., 4., 2.], dtype=float32))
    >>> patches.iop(patches)[1]
    array([0.5, 1. ])
    >>> patches.select(patches.areas > 10).decode().shape
    (1, 4, 6)

    Attributes:
        height, width: image size in pixels; every mask has this size.
        rles: N masks as COCO's compressed counts.
        boxes: (N, 4) float32, tight boxes (x0, y0, x1, y1) in pixels, maximum exclusive; zeros for an empty mask.
        areas: (N,) int64, in pixels.
        predicted_iou: (N,) float32, the generator's estimate of mask quality; NaN if it gives none.
        stability_score: (N,) float32, IoU of the mask thresholded high and low; NaN if there is none.
        source: (N,) uint8, index of the patch's generator in the cache's manifest.
    """

    height: int
    width: int
    rles: tuple[bytes, ...]
    boxes: NDArray[np.float32]
    areas: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    source: NDArray[np.uint8]

    def __post_init__(self) -> None:
        count = len(self.rles)
        for name, dtype, row in _COLUMNS:
            column = np.asarray(getattr(self, name), dtype)
            if column.shape != (count, *row):
                raise CacheError(f"{name} of {count} patches has shape {column.shape}, must be {(count, *row)}")
            if column.flags.writeable:
                column = column.view()
                column.setflags(write=False)
                object.__setattr__(self, name, column)

    @classmethod
    def from_rles(
        cls,
        height: int,
        width: int,
        rles: Sequence[bytes],
        *,
        predicted_iou: ArrayLike | None = None,
        stability_score: ArrayLike | None = None,
        source: ArrayLike = 0,
    ) -> "Patches":
        """Create patches from compressed counts; scores are (N,), or None for NaN, `source` is (N,) or one number.

        >>> Patches.from_rles(3, 2, [b"123"]).areas
        array([2])

        Raises MaskError if counts do not describe a mask of this image size.
        """
        rles = tuple(rles)
        intervals = rle.decode_intervals(rles, height, width)
        areas, boxes = rle.measure(intervals, len(rles), height)
        missing = np.full(len(rles), np.nan, np.float32)
        quality = missing if predicted_iou is None else np.array(predicted_iou, np.float32)
        stability = missing if stability_score is None else np.array(stability_score, np.float32)
        sources = np.array(np.broadcast_to(np.asarray(source, np.uint8), len(rles)))
        return cls(height, width, rles, boxes, areas, quality, stability, sources)._with_intervals(intervals)

    @classmethod
    def from_masks(cls, masks: NDArray[Any], **columns: Any) -> "Patches":
        """Create patches from binary masks (N, H, W); `columns` are the scores and source of `from_rles`."""
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise CacheError(f"masks must be (N, H, W), not {masks.shape}")
        height, width = masks.shape[1:]
        return cls.from_rles(height, width, rle.encode(masks), **columns)

    @classmethod
    def unchecked(cls, **attributes: Any) -> "Patches":
        """Create patches from valid attributes with read-only columns, skipping validation.

        For the reader of a cache, which has validated them: validating again would take longer than reading.
        """
        patches = object.__new__(cls)
        patches.__dict__.update(attributes)
        return patches

    @classmethod
    def empty(cls, height: int, width: int) -> "Patches":
        """Create zero patches of an image."""
        return cls.from_rles(height, width, ())

    @classmethod
    def concatenate(cls, parts: Sequence["Patches"]) -> "Patches":
        """Concatenate patches of one image, in order; raise CacheError if `parts` is empty or image sizes differ."""
        if not parts:
            raise CacheError("nothing to concatenate: the image size is unknown (use Patches.empty)")
        for part in parts:
            parts[0]._require_same_size(part)
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name, _, _ in _COLUMNS}
        return replace(parts[0], rles=tuple(counts for part in parts for counts in part.rles), **columns)

    def __len__(self) -> int:
        return len(self.rles)

    @cached_property
    def intervals(self) -> rle.Intervals:
        """The foreground runs of all masks, decoded once; raises MaskError if counts are damaged."""
        return _read_only(rle.decode_intervals(self.rles, self.height, self.width))

    @property
    def coco_rles(self) -> list[dict[str, Any]]:
        """The masks as pycocotools represents them: {"size": [height, width], "counts": bytes}."""
        return rle.to_coco(self.rles, self.height, self.width)

    def decode(self, index: Any = None) -> NDArray[np.bool_]:
        """Decode masks to (n, H, W): all, or those of `index` (a number, slice, indices, or (N,) bool)."""
        rles = self.rles if index is None else [self.rles[i] for i in self._positions(index)]
        return rle.decode(rles, self.height, self.width)

    def select(self, index: Any) -> "Patches":
        """Return the patches of `index` (a number, slice, indices, or (N,) bool), in its order."""
        positions = self._positions(index)
        columns = (getattr(self, name)[positions] for name, _, _ in _COLUMNS)
        selected = Patches(self.height, self.width, tuple(self.rles[i] for i in positions), *columns)
        if "intervals" in self.__dict__:
            selected._with_intervals(rle.select_intervals(self.intervals, len(self), positions))
        return selected

    def iop(self, other: "Patches") -> NDArray[np.float64]:
        """Return the intersection with each other patch over the area of this one, (N, M); 0 for an empty patch."""
        self._require_same_size(other)
        return rle.iop(self.rles, other.rles, self.height, self.width)

    def iou(self, other: "Patches") -> NDArray[np.float64]:
        """Return the intersection over union of masks, (N, M)."""
        self._require_same_size(other)
        return rle.iou(self.rles, other.rles, self.height, self.width)

    def covering(self, x: int, y: int) -> NDArray[np.int64]:
        """Return the indices of the patches that cover a pixel, in ascending order."""
        pixel = np.zeros((1, self.height, self.width), bool)
        pixel[0, y, x] = True
        return np.flatnonzero(Patches.from_masks(pixel).iop(self)[0])

    def partition(self) -> Partition:
        """Return the atomic regions into which the patches divide the image."""
        return Partition.of_masks(self.intervals, len(self), self.height, self.width)

    def union(self, groups: Sequence[Sequence[int]]) -> list[bytes]:
        """Return the compressed counts of the union of each group of patches; an empty group gives an empty mask."""
        return rle.union(self.rles, groups, self.height, self.width)

    def crop_to(self, box: Sequence[float]) -> "Patches":
        """Set pixels outside the rectangle (x0, y0, x1, y1) to background.

        Image size, number and order of patches stay; a patch outside the rectangle has area 0.
        """
        intervals = rle.crop_intervals(self.intervals, box, self.height)
        rles = tuple(rle.encode_intervals(intervals, len(self), self.height, self.width))
        areas, boxes = rle.measure(intervals, len(self), self.height)
        return replace(self, rles=rles, areas=areas, boxes=boxes)._with_intervals(intervals)

    def roi_masks(self, boxes: ArrayLike | None = None, size: int = 7) -> NDArray[np.float32]:
        """Resample each mask over its box, as RoIAlign would, to (N, size, size) float32 in [0, 1].

        A bin is the mean of a regular grid of 4 x 4 points. A point has the value of the pixel that contains it, and 0
        outside the image. A box without extent gives zeros.

        >>> Patches.from_rles(3, 2, [b"123"]).roi_masks([[0, 0, 2, 3]], size=2)[0]
        array([[0.25, 0.  ],
               [1.  , 0.  ]], dtype=float32)

        Args:
            boxes: (N, 4) XYXY in pixels of the image, fractions allowed; None for the patches' own boxes.
            size: bins per side.
        """
        rectangles = np.asarray(self.boxes if boxes is None else boxes, np.float64)
        if rectangles.shape != (len(self), 4) or not np.isfinite(rectangles).all():
            raise CacheError(f"boxes must be ({len(self)}, 4) and finite, found shape {rectangles.shape}")
        columns, inside_x = _sample_pixels(rectangles[:, 0::2], size, self.width)
        rows, inside_y = _sample_pixels(rectangles[:, 1::2], size, self.height)
        points = columns[:, :, None] * self.height + rows[:, None, :]  # (N, x, y), ascending: fastest to search
        flat = points.reshape(len(self), (size * SAMPLES_PER_BIN) ** 2)
        hits = rle.contains(self.intervals, flat, self.height * self.width).reshape(points.shape)
        hits &= inside_x[:, :, None] & inside_y[:, None, :]
        bins = hits.reshape(len(self), size, SAMPLES_PER_BIN, size, SAMPLES_PER_BIN)
        return bins.mean(axis=(2, 4), dtype=np.float32).transpose(0, 2, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "intervals"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _read_only([state[name] for name, _, _ in _COLUMNS])  # which pickle forgets
        self.__dict__.update(state)

    def _with_intervals(self, intervals: rle.Intervals) -> "Patches":
        """Set `intervals` of new patches, so that they are not decoded again."""
        self.__dict__["intervals"] = _read_only(intervals)
        return self

    def _positions(self, index: Any) -> NDArray[np.int64]:
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.int64)  # numpy reads [] as float
        return np.atleast_1d(np.arange(len(self))[index])

    def _require_same_size(self, other: "Patches") -> None:
        if (self.height, self.width) != (other.height, other.width):
            raise CacheError(
                f"image sizes of the patches differ: {self.height} x {self.width} and {other.height} x {other.width}"
            )


def _read_only(columns: _Arrays) -> _Arrays:
    for column in columns:
        column.setflags(write=False)
    return columns


def _sample_pixels(ranges: NDArray[np.float64], size: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the pixels of the sample points along one axis, (N, size * SAMPLES_PER_BIN), and if they are inside."""
    low, high = ranges[:, :1], ranges[:, 1:]
    count = size * SAMPLES_PER_BIN
    points = low + (np.arange(count) + 0.5) / count * (high - low)
    inside = (points >= 0) & (points < limit) & (high > low)
    return np.clip(points, 0, limit - 1).astype(np.int64), inside
