"""Full-size masks from SAM's low-resolution logits, computed only where that can matter.

SAM enlarges its logits (256 x 256) twice, bilinearly: to the encoder's input size, then, without the padding, to the
image's size. Both are linear along rows and along columns, so one sparse matrix for the rows and one for the columns do
the two at once, on any part of the image. And an enlarged value lies between the smallest and the largest value it is
made of: a tile whose logits are all far inside or all far outside the mask is known without being computed. For real
masks that is most of the image.

Shapes below: n masks, h x w low-resolution logits, H x W image, a grid of P x Q tiles, t tiles computed at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

TILE = 16
"""Low-resolution pixels along the side of a tile."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class MaskScores:
    """What the filters and the non-maximum suppression need to know of n masks."""

    stability: Tensor
    """(n,) float32: IoU of the masks at the threshold plus and minus the offset; NaN where both are empty."""
    boxes: Tensor
    """(n, 4) int64 XYXY, first and last pixel, both inclusive; zeros where the mask is empty."""


class MaskEnlarger:
    """Scores and encodes the masks of one image (or crop of one), given their low-resolution logits.

    Args:
        low_size: (h, w) of the logits.
        encoder_size: side of the encoder's square input.
        input_size: (height, width) of the image inside that input, without padding.
        image_size: (H, W) of the image.
        threshold: logit above which a pixel belongs to the mask.
        memory_budget: bytes for the values of the tiles computed at once.
        device: where the logits will be.
    """

    def __init__(
        self,
        low_size: tuple[int, int],
        encoder_size: int,
        input_size: tuple[int, int],
        image_size: tuple[int, int],
        *,
        threshold: float,
        memory_budget: int,
        device: torch.device,
    ) -> None:
        self.encoder_size = encoder_size
        self.input_size = input_size
        self.image_size = image_size
        self.threshold = threshold
        self.rows = _Axis.build(low_size[0], encoder_size, input_size[0], image_size[0], device)
        self.columns = _Axis.build(low_size[1], encoder_size, input_size[1], image_size[1], device)
        tile_bytes = FLOAT_BYTES * self.rows.matrices.shape[1] * self.columns.matrices.shape[1]
        self.tiles_at_once = max(1, memory_budget // (2 * tile_bytes))

    def score(self, logits: Tensor, stability_offset: float) -> MaskScores:
        """Stability and box of masks given by logits (n, h, w) float32."""
        logits = logits - self.threshold
        lowest, highest = self._tile_range(logits)
        sure = lowest > stability_offset
        unsure = ~sure & (highest > -stability_offset)

        tile_areas = self.rows.lengths[:, None] * self.columns.lengths
        area_high = (sure * tile_areas).sum((1, 2))
        area_low = area_high.clone()
        bounds = _Bounds(len(logits), self.image_size, logits.device)
        mask, row, column = sure.nonzero(as_tuple=True)
        bounds.add(
            mask, self.rows.starts[row], self.rows.ends[row], self.columns.starts[column], self.columns.ends[column]
        )
        for mask, row, column in _batches(unsure.nonzero(as_tuple=True), self.tiles_at_once):
            values = self._tile_values(logits, mask, row, column)
            area_high.index_add_(0, mask, _count(values > stability_offset))
            area_low.index_add_(0, mask, _count(values > -stability_offset))
            if stability_offset > 0:  # a tile is filled up with zeros to the size of the largest
                area_low.index_add_(0, mask, tile_areas[row, column] - values[0].numel())
            inside = values > 0
            bounds.add_tiles(mask, inside, self.rows.starts[row], self.columns.starts[column])
        return MaskScores(stability=area_high.int() / area_low.int(), boxes=bounds.boxes())

    def encode(self, logits: Tensor, offset: tuple[int, int], canvas: tuple[int, int]) -> list[bytes]:
        """COCO-compressed counts of the masks of logits (n, h, w), the image being a part of a canvas (height, width).

        `offset` is the (x, y) of the image in the canvas.
        """
        x, y = offset
        height, width = self.image_size
        counts = []
        for low in logits:
            big = F.interpolate(low[None, None], (self.encoder_size,) * 2, mode="bilinear", align_corners=False)
            big = big[..., : self.input_size[0], : self.input_size[1]]
            big = F.interpolate(big, self.image_size, mode="bilinear", align_corners=False)
            columns_first = torch.zeros(canvas[::-1], dtype=torch.uint8)
            columns_first[x : x + width, y : y + height] = (big[0, 0] > self.threshold).T
            counts.append(coco.encode(np.asfortranarray(columns_first.numpy().T))["counts"])
        return counts

    def _tile_range(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest of the logits that each tile is made of, (n, P, Q) both."""
        by_row = logits[:, self.rows.sources]  # (n, P, span, w)
        lowest = by_row.amin(2)[:, :, self.columns.sources].amin(3)
        highest = by_row.amax(2)[:, :, self.columns.sources].amax(3)
        return lowest, highest

    def _tile_values(self, logits: Tensor, mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Enlarged logits of the tiles (mask, row, column): (t, tile height, tile width), zero beyond a tile's end."""
        sources = logits[
            mask[:, None, None], self.rows.sources[row][:, :, None], self.columns.sources[column][:, None, :]
        ]
        return self.rows.matrices[row] @ sources @ self.columns.matrices[column].transpose(1, 2)


@dataclass(frozen=True)
class _Axis:
    """One axis of the image cut into tiles, each with the matrix that computes it from a few low-resolution pixels."""

    starts: Tensor
    """(P,) int64: first pixel of each tile."""
    ends: Tensor
    """(P,) int64: one past the last pixel of each tile."""
    sources: Tensor
    """(P, span) int64: the low-resolution pixels it is made of."""
    matrices: Tensor
    """(P, tile size, span) float32: interpolation weights; zero rows beyond the tile's end."""

    @property
    def lengths(self) -> Tensor:
        return self.ends - self.starts

    @staticmethod
    def build(low: int, encoder: int, used: int, size: int, device: torch.device) -> "_Axis":
        weights = _interpolation(low, encoder, used, size)
        touched = weights != 0
        first = touched.int().argmax(1)
        last = low - 1 - touched.flip(1).int().argmax(1)
        tile_of = first // TILE
        tiles, lengths = torch.unique_consecutive(tile_of, return_counts=True)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        span = int((last[ends - 1] - tiles * TILE).amax()) + 1
        source_starts = (tiles * TILE).clamp(max=max(low - span, 0))
        sources = source_starts[:, None] + torch.arange(span)
        matrices = torch.zeros(len(tiles), int(lengths.amax()), span)
        for matrix, source, start, end in zip(matrices, sources, starts, ends, strict=True):
            matrix[: end - start] = weights[start:end, source]
        return _Axis(starts.to(device), ends.to(device), sources.to(device), matrices.to(device))


class _Bounds:
    """Running bounding boxes of n masks."""

    def __init__(self, count: int, image_size: tuple[int, int], device: torch.device) -> None:
        height, width = image_size
        self.low = torch.tensor([[width, height]], device=device).repeat(count, 1)
        self.high = torch.zeros((count, 2), dtype=torch.int64, device=device)

    def add(self, mask: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> None:
        """Extend the box of each of `mask` (t,) by a rectangle with exclusive bottom and right."""
        index = mask[:, None].expand(-1, 2)
        self.low.scatter_reduce_(0, index, torch.stack([left, top], 1), "amin")
        self.high.scatter_reduce_(0, index, torch.stack([right, bottom], 1), "amax")

    def add_tiles(self, mask: Tensor, inside: Tensor, top: Tensor, left: Tensor) -> None:
        """Extend the box of each of `mask` (t,) by the pixels `inside` (t, h, w) a tile at (top, left)."""
        rows, columns = inside.any(2), inside.any(1)
        some = rows.any(1)
        mask, top, left, rows, columns = (part[some] for part in (mask, top, left, rows, columns))
        first_row, end_row = _extent(rows)
        first_column, end_column = _extent(columns)
        self.add(mask, top + first_row, top + end_row, left + first_column, left + end_column)

    def boxes(self) -> Tensor:
        """(n, 4) int64 XYXY with the last pixel included; zeros for an empty mask."""
        boxes = torch.cat([self.low, self.high - 1], 1)
        return boxes * (self.high > 0).all(1, keepdim=True)


def _extent(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first true value, and one past that of the last, in each row of (t, k)."""
    return flags.int().argmax(1), flags.shape[1] - flags.flip(1).int().argmax(1)


def _batches(columns: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The columns of a table, `size` rows at a time."""
    for start in range(0, len(columns[0]), size):
        yield tuple(column[start : start + size] for column in columns)


def _count(flags: Tensor) -> Tensor:
    """(t,) int64: true values of (t, h, w)."""
    return flags.flatten(1).count_nonzero(1)


def _interpolation(low: int, encoder: int, used: int, size: int) -> Tensor:
    """(size, low): one axis of the enlargement low -> encoder -> the first `used` of these -> size."""
    identity = torch.eye(low)[None]
    enlarged = F.interpolate(identity, encoder, mode="linear", align_corners=False)[..., :used]
    return F.interpolate(enlarged, size, mode="linear", align_corners=False)[0].T
