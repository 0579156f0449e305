"""The patches of one image: the value that every generator makes, the cache keeps and the model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.partition import Partition

POINTS_PER_CELL = 4  # per axis, where a mask is resampled

_COLUMNS: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] = (
    ("boxes", np.dtype(np.float32), (4,)),
    ("areas", np.dtype(np.int64), ()),
    ("predicted_iou", np.dtype(np.float32), ()),
    ("stability_score", np.dtype(np.float32), ()),
    ("source", np.dtype(np.uint8), ()),
)


@dataclass(frozen=True, eq=False)
class Patches:
    """N masks of one image, with what their generator said of them. Immutable; N may be 0.

    Make one with `from_rles` or `from_masks`, which work out boxes and areas.

    Attributes:
        height, width: of the image, in pixels; every mask has this size.
        rles: N COCO-compressed counts.
        boxes: (N, 4) float32, (x0, y0, x1, y1) in pixels, tight around the mask, maximum exclusive; zeros if empty.
        areas: (N,) int64, pixels.
        predicted_iou: (N,) float32, the generator's own guess of the mask's quality; NaN where it makes none.
        stability_score: (N,) float32, IoU of the mask cut at a high and at a low threshold; NaN where there is none.
        source: (N,) uint8, which generator of the cache's manifest made the patch.
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
                raise CacheError(f"{name} of {count} patches has shape {column.shape}, not {(count, *row)}")
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
        """Patches of compressed counts; scores are (N,) or None, `source` (N,) or one number for all.

        Raises:
            MaskError: if counts do not describe a mask of this image size.
        """
        rles = tuple(rles)
        areas, boxes = rle.area_and_box(rles, height, width)
        return cls(
            height,
            width,
            rles,
            boxes,
            areas,
            _scores(predicted_iou, len(rles)),
            _scores(stability_score, len(rles)),
            np.array(np.broadcast_to(np.asarray(source, np.uint8), len(rles))),
        )

    @classmethod
    def from_masks(
        cls,
        masks: NDArray[np.bool_],
        *,
        predicted_iou: ArrayLike | None = None,
        stability_score: ArrayLike | None = None,
        source: ArrayLike = 0,
    ) -> "Patches":
        """Patches of masks (N, H, W); N = 0 is possible where H and W are given by the shape."""
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise CacheError(f"masks are (N, H, W), not {masks.shape}")
        rles = [coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in masks.astype(bool)]
        height, width = masks.shape[1:]
        return cls.from_rles(
            height, width, rles, predicted_iou=predicted_iou, stability_score=stability_score, source=source
        )

    @classmethod
    def unchecked(cls, **attributes: Any) -> "Patches":
        """Patches of attributes of which it is known that they are as described, the columns read-only.

        For the reader of a cache, which has looked at all of them: what looks again takes longer than reading does.
        """
        patches = object.__new__(cls)
        patches.__dict__.update(attributes)
        return patches

    @classmethod
    def empty(cls, height: int, width: int) -> "Patches":
        """No patches at all of an image of this size."""
        return cls.from_rles(height, width, ())

    @classmethod
    def concatenate(cls, parts: Sequence["Patches"]) -> "Patches":
        """The patches of all parts, in order; all of one image, at least one part."""
        if not parts:
            raise CacheError("nothing to concatenate: no image size is known without any part (see Patches.empty)")
        for part in parts:
            parts[0]._require_same_size(part)
        return cls(
            parts[0].height,
            parts[0].width,
            tuple(counts for part in parts for counts in part.rles),
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.areas for part in parts]),
            np.concatenate([part.predicted_iou for part in parts]),
            np.concatenate([part.stability_score for part in parts]),
            np.concatenate([part.source for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def coco_rles(self) -> list[dict[str, Any]]:
        """The masks as pycocotools takes them: {"size": [height, width], "counts": bytes}."""
        return rle.to_coco(self.rles, self.height, self.width)

    def decode(self, index: Any = None) -> NDArray[np.bool_]:
        """(n, H, W) masks: all, or those of `index` (a number, a slice, indices, or (N,) bool)."""
        rles = self.rles if index is None else [self.rles[i] for i in self._positions(index)]
        rle.check(rles, self.height, self.width)
        if not rles:
            return np.zeros((0, self.height, self.width), bool)
        return coco.decode(rle.to_coco(rles, self.height, self.width)).astype(bool).transpose(2, 0, 1)

    def select(self, index: Any) -> "Patches":
        """The patches of `index` (a number, a slice, indices, or (N,) bool), in its order."""
        positions = self._positions(index)
        return Patches(
            self.height,
            self.width,
            tuple(self.rles[i] for i in positions),
            self.boxes[positions],
            self.areas[positions],
            self.predicted_iou[positions],
            self.stability_score[positions],
            self.source[positions],
        )

    def iop(self, other: "Patches") -> NDArray[np.float64]:
        """(N, len(other)): the share of patch i that lies inside the other's j; 0 for an empty patch."""
        self._require_same_size(other)
        return rle.iop(self.rles, other.rles, self.height, self.width)

    def iou(self, other: "Patches") -> NDArray[np.float64]:
        """(N, len(other)): intersection over union of masks."""
        self._require_same_size(other)
        return rle.iou(self.rles, other.rles, self.height, self.width)

    def partition(self) -> Partition:
        """The atomic regions into which the patches divide the image."""
        return Partition.of_masks(self.rles, self.height, self.width)

    def union(self, groups: Sequence[Sequence[int]]) -> list[bytes]:
        """The compressed counts of each group's patches taken together; an empty group gives the empty mask."""
        return rle.union(self.rles, groups, self.height, self.width)

    def crop_to(self, box: Sequence[float]) -> "Patches":
        """The patches cut to the rectangle (x0, y0, x1, y1) of pixels.

        Image size, number and order stay, so that a patch keeps its identity; one outside is left with area 0.
        """
        return Patches.from_rles(
            self.height,
            self.width,
            rle.crop(self.rles, box, self.height, self.width),
            predicted_iou=self.predicted_iou,
            stability_score=self.stability_score,
            source=self.source,
        )

    def roi_masks(self, boxes: ArrayLike | None = None, size: int = 7) -> NDArray[np.float32]:
        """Each mask resampled over its box, as MaskRoI takes it (METHOD 2.3), without decoding it.

        A cell is the mean of a regular 4 x 4 grid of points inside it; a point has the value of the pixel it falls in,
        and 0 outside the image. A box without extent gives zeros.

        Args:
            boxes: (N, 4) XYXY in pixels of this image, fractions allowed, one for each patch; default: its own.
            size: cells per side.

        Returns:
            (N, size, size) float32 in [0, 1].
        """
        rectangles = np.asarray(self.boxes if boxes is None else boxes, np.float64)
        if rectangles.shape != (len(self), 4) or not np.isfinite(rectangles).all():
            raise CacheError(f"{len(self)} patches need as many finite boxes (N, 4), not {rectangles.shape}")
        columns, inside_x = _sample_pixels(rectangles[:, 0], rectangles[:, 2], size, self.width)
        rows, inside_y = _sample_pixels(rectangles[:, 1], rectangles[:, 3], size, self.height)
        points = columns[:, :, None] * self.height + rows[:, None, :]  # (N, x, y): ascending, as the search likes it
        runs = rle.decode_runs(self.rles, self.height, self.width)
        flat = points.reshape(len(self), (size * POINTS_PER_CELL) ** 2)
        hits = rle.contains(runs, flat, self.height * self.width).reshape(points.shape)
        hits &= inside_x[:, :, None] & inside_y[:, None, :]
        cells = hits.reshape(len(self), size, POINTS_PER_CELL, size, POINTS_PER_CELL)
        return cells.mean(axis=(2, 4), dtype=np.float32).transpose(0, 2, 1)

    def _positions(self, index: Any) -> NDArray[np.int64]:
        return np.atleast_1d(np.arange(len(self))[_as_index(index)])

    def _require_same_size(self, other: "Patches") -> None:
        if (self.height, self.width) != (other.height, other.width):
            raise CacheError(
                f"patches of images of different size, {self.height} x {self.width} and "
                f"{other.height} x {other.width}, cannot be compared or joined"
            )


def _as_index(index: Any) -> Any:
    """An index numpy understands; an empty list is one of integers, not of floats."""
    if isinstance(index, slice):
        return index
    index = np.asarray(index)
    return index if index.size else index.astype(np.int64)


def _scores(values: ArrayLike | None, count: int) -> NDArray[np.float32]:
    return np.full(count, np.nan, np.float32) if values is None else np.array(values, np.float32)


def _sample_pixels(
    low: NDArray[np.float64], high: NDArray[np.float64], size: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pixels of the sample points along one axis, (N, size * POINTS_PER_CELL), and which of them are in the image."""
    count = size * POINTS_PER_CELL
    fractions = (np.arange(count) + 0.5) / count
    points = low[:, None] + fractions * (high - low)[:, None]
    inside = (points >= 0) & (points < limit) & (high > low)[:, None]
    return np.clip(points, 0, limit - 1).astype(np.int64), inside
