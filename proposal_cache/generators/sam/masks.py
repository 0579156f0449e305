"""Full-size masks from SAM's low-resolution logits, enlarged only where a mask's boundary may be.

SAM enlarges its logits (256 x 256) twice, bilinearly: to the encoder's input size, then, without the padding, to the
image's size. Both are linear along rows and along columns, so one matrix for the rows and one for the columns do the
two at once. A pixel needs 3 or 4 low-resolution ones side by side: the image is cut into tiles of pixels that need the
same few. And an enlarged value lies between those that it is made of: a tile all of whose logits are above the highest
threshold is full, one all of whose logits are below the lowest is empty, and only the others are enlarged.

Shapes: n masks, h x w low-resolution logits, H x W image, R x C tiles of r x c pixels, k tiles of any masks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

TILE = 8  # low-resolution pixels along the side of a tile
BLOCK = 4  # low-resolution pixels along the side of a block, whose extremes are taken first; a token of SAM has as many
FLOAT_BYTES = 4

_FEWEST_TILES = 64  # at once, however little memory there may be


@dataclass(frozen=True)
class MaskScores:
    """What the filters and the non-maximum suppression need to know of n masks."""

    stability: Tensor
    """(n,) float32: IoU of the masks at the threshold plus and minus the offset; NaN where both are empty."""
    boxes: Tensor
    """(n, 4) int64 XYXY, first and last pixel, both inclusive; zeros where the mask is empty."""


class MaskEnlarger:
    """Scores and encodes the masks of one image (or crop of one), given their low-resolution logits.

    The padding of the encoder's input has no pixel: `logits_size` (h, w) is as far as logits are needed.

    Args:
        low_size: (height, width) of all logits; multiples of BLOCK.
        encoder_size: side of the encoder's square input.
        input_size: (height, width) of the image inside that input, without padding.
        image_size: (H, W) of the image.
        threshold: logit above which a pixel belongs to the mask.
        memory_budget: bytes for the tiles enlarged at once.
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
        self.threshold = threshold
        self.rows = _Axis.of(low_size[0], encoder_size, input_size[0], image_size[0], device)
        self.columns = _Axis.of(low_size[1], encoder_size, input_size[1], image_size[1], device)
        self.logits_size = (self.rows.needed, self.columns.needed)
        # An enlarged tile and what is compared in it; the logits that it is made of, and their places.
        numbers = 2 * self.rows.tile * self.columns.tile + 4 * self.rows.span * self.columns.span
        numbers += 2 * (self.rows.tile * self.rows.span + self.columns.tile * self.columns.span)
        self.tiles_at_once = max(_FEWEST_TILES, memory_budget // (FLOAT_BYTES * numbers))

    def score(self, logits: Tensor, stability_offset: float) -> MaskScores:
        """Stability and boxes of masks given by logits (n, h, w) float32."""
        low, high = self.threshold - stability_offset, self.threshold + stability_offset
        full, mixed = self._tiles(logits, low, high)
        larger = (full * (self.rows.sizes[:, None] * self.columns.sizes)).sum((1, 2))
        smaller = larger.clone()
        top_bottom, left_right = _Extent.of(full.any(2), self.rows), _Extent.of(full.any(1), self.columns)
        for mask, row, column, values in self._enlarged(logits, mixed):
            larger.index_add_(0, mask, _count(values > low))
            smaller.index_add_(0, mask, _count(values > high))
            inside = values > self.threshold
            top_bottom.widen(mask, row, _any(inside, 2))
            left_right.widen(mask, column, _any(inside, 1))
        boxes = torch.stack([left_right.first, top_bottom.first, left_right.last, top_bottom.last], 1)
        return MaskScores(smaller / larger, boxes * (top_bottom.last >= 0)[:, None])

    def encode(self, logits: Tensor, offset: tuple[int, int], canvas: tuple[int, int]) -> list[bytes]:
        """COCO-compressed counts of the masks of logits (n, h, w), the image being a part of a canvas (height, width).

        `offset` is the (x, y) of the image in the canvas.
        """
        (x, y), (height, width) = offset, (self.rows.size, self.columns.size)
        counts = []
        for one in logits.split(1) if len(logits) else ():
            full, mixed = self._tiles(one, self.threshold, self.threshold)
            # Columns first, the order of COCO's run lengths.
            pixels = full[0].T.cpu().numpy().repeat(self.columns.tile, 0).repeat(self.rows.tile, 1)
            tiles = pixels.reshape(full.shape[2], self.columns.tile, full.shape[1], self.rows.tile).swapaxes(1, 2)
            for _, row, column, values in self._enlarged(one, mixed):
                tiles[column.cpu(), row.cpu()] = (values > self.threshold).mT.cpu().numpy()
            picture = np.zeros(canvas[::-1], np.uint8)
            picture[x : x + width, y : y + height] = pixels[:width, :height]
            counts.append(coco.encode(picture.T)["counts"])
        return counts

    def _tiles(self, logits: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """(n, R, C) bool each: the tiles all above `high`, and those that may have values on both sides of a threshold.

        The others have none above `low`.
        """
        full = self._extremes(logits, torch.amin) > high
        return full, (self._extremes(logits, torch.amax) > low) & ~full

    def _extremes(self, logits: Tensor, extreme: Callable[[Tensor, int], Tensor]) -> Tensor:
        """(n, R, C): bounds of what each tile's pixels are made of, by blocks."""
        blocks = extreme(extreme(logits.unflatten(1, (-1, BLOCK)), 2).unflatten(2, (-1, BLOCK)), 3)
        return extreme(extreme(blocks[:, self.rows.blocks], 2)[:, :, self.columns.blocks], 3)

    def _enlarged(self, logits: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The flagged ones of (n, R, C) tiles, so many at a time: mask, row, column (k,), and values (k, r, c).

        Pixels beyond the image are NaN, which is above no threshold.
        """
        sources = logits.unfold(1, self.rows.span, 1).unfold(2, self.columns.span, 1)  # a view: from each pixel on
        for index in tiles.nonzero().split(self.tiles_at_once):
            mask, row, column = index.unbind(1)
            values = self.rows.matrices[row] @ sources[mask, self.rows.starts[row], self.columns.starts[column]]
            yield mask, row, column, values @ self.columns.matrices[column].mT


@dataclass(frozen=True)
class _Axis:
    """One axis of the image in tiles of pixels, each with the matrix that makes it of a few low-resolution pixels."""

    size: int
    """Pixels."""
    needed: int
    """Low-resolution pixels that they are made of, from the first on, up to a whole block."""
    tile: int
    """Pixels of a tile; the last one may reach beyond the image."""
    sizes: Tensor
    """(P,) int64: pixels of each of P tiles in the image."""
    starts: Tensor
    """(P,) int64: the first of the `span` low-resolution pixels that each is made of."""
    blocks: Tensor
    """(P, any) int64: the blocks in which these lie."""
    matrices: Tensor
    """(P, tile, span) float32; NaN for pixels beyond the image."""

    @staticmethod
    def of(low: int, encoder: int, used: int, size: int, device: torch.device) -> "_Axis":
        weights = _interpolation(low, encoder, used, size)
        tile = max(1, round(TILE * size * encoder / (low * used)))
        beyond = -size % tile
        tiles = F.pad(weights, (0, 0, 0, beyond)).unflatten(0, (-1, tile))
        touched = (tiles != 0).any(1).int()
        first, end = touched.argmax(1), low - touched.flip(1).argmax(1)
        needed = -(-int(end.max()) // BLOCK) * BLOCK
        span = int((end - first).max())
        first = first.clamp(max=needed - span)
        sources = first[:, None] + torch.arange(span)
        matrices = torch.gather(tiles, 2, sources[:, None].expand(-1, tile, -1))
        matrices[-1, tile - beyond :] = torch.nan
        sizes = torch.full((len(tiles),), tile)
        sizes[-1] -= beyond
        last_block = sources[:, -1:] // BLOCK
        blocks = torch.minimum(sources[:, :1] // BLOCK + torch.arange(span // BLOCK + 2), last_block)
        return _Axis(size, needed, tile, sizes.to(device), first.to(device), blocks.to(device), matrices.to(device))

    @property
    def span(self) -> int:
        return self.matrices.shape[2]


@dataclass(frozen=True)
class _Extent:
    """The first and the last pixel of n masks along an axis."""

    axis: _Axis
    first: Tensor
    """(n,) int64; beyond the axis where there is none."""
    last: Tensor
    """(n,) int64; -1 where there is none."""

    @staticmethod
    def of(full: Tensor, axis: _Axis) -> "_Extent":
        """Of masks that fill some tiles (n, P)."""
        starts = torch.arange(full.shape[1], device=full.device) * axis.tile
        first = torch.where(full, starts, axis.size).amin(1)
        return _Extent(axis, first, torch.where(full, starts + axis.sizes - 1, -1).amax(1))

    def widen(self, mask: Tensor, tile: Tensor, inside: Tensor) -> None:
        """By those of the pixels (k, tile) of tiles (k,) of masks (k,) that are not 0."""
        places = torch.arange(inside.shape[1], device=inside.device)
        first = torch.where(inside, places, self.axis.size).amin(1)
        last = torch.where(inside, places, -1).amax(1)
        found, start = last >= 0, tile * self.axis.tile
        self.first.scatter_reduce_(0, mask, torch.where(found, start + first, self.axis.size), "amin")
        self.last.scatter_reduce_(0, mask, torch.where(found, start + last, -1), "amax")


def _count(flags: Tensor) -> Tensor:
    """(k,) int64: the true ones of each (k, r, c)."""
    return flags.flatten(1).sum(1)


def _any(flags: Tensor, dim: int) -> Tensor:
    """Whether any is true along an axis. As numbers, for `Tensor.any` takes three times as long on a CPU."""
    return flags.view(torch.uint8).amax(dim).bool()


def _interpolation(low: int, encoder: int, used: int, size: int) -> Tensor:
    """(size, low): one axis of the enlargement low -> encoder -> the first `used` of these -> size."""
    identity = torch.eye(low)[None]
    enlarged = F.interpolate(identity, encoder, mode="linear", align_corners=False)[..., :used]
    return F.interpolate(enlarged, size, mode="linear", align_corners=False)[0].T
