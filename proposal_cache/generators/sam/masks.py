"""Upsampling of SAM's low-resolution mask logits, evaluating only tiles that can contain a boundary.

SAM upsamples its logits (256 x 256) twice, bilinearly: to the encoder's input size and then, after removing the
padding, to the image size. Both steps are separable and linear, so one matrix for rows and one for columns apply both.
A pixel depends on 3 or 4 adjacent low-resolution values per axis; the image is divided into tiles of pixels that depend
on the same few. An interpolated value lies between the values it depends on. A tile is therefore full if all of these
exceed the highest threshold, and empty if all are below the lowest; only the other tiles are evaluated.

Shapes: n masks, h x w low-resolution logits, H x W image, R x C tiles of r x c pixels, k tiles of any masks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

TILE = 8  # low-resolution pixels per side of a tile
BLOCK = 4  # low-resolution pixels per side of a block, whose extremes are computed first; one image token of SAM
_MIN_TILES = 64  # at once, independent of the memory budget


class MaskUpsampler:
    """Upsampling of the masks of one image, or crop of one, to score and encode them.

    `logits_size` is the (h, w) of the logits that are needed; the rest is padding of the encoder's input.

    Args:
        low_size: (height, width) of all logits; multiples of BLOCK.
        encoder_size: side of the encoder's square input.
        input_size: (height, width) of the image inside that input, without padding.
        image_size: (H, W) of the image.
        threshold: logit above which a pixel belongs to the mask.
        memory_budget: bytes for the tiles evaluated at once.
        device: of the logits.
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
        # Values of a tile and their comparison; its logits and their indices.
        numbers = 2 * self.rows.tile * self.columns.tile + 4 * self.rows.span * self.columns.span
        numbers += 2 * (self.rows.tile * self.rows.span + self.columns.tile * self.columns.span)
        self.tiles_at_once = max(_MIN_TILES, memory_budget // (torch.float32.itemsize * numbers))

    def score(self, logits: Tensor, stability_offset: float) -> tuple[Tensor, Tensor]:
        """Compute stability scores and boxes of masks with logits (n, h, w) float32.

        Returns:
            (n,) float32, IoU of the masks at the threshold plus and minus the offset, NaN if both are empty;
            (n, 4) int64 XYXY, last pixel inclusive, zeros if the mask is empty.
        """
        low, high = self.threshold - stability_offset, self.threshold + stability_offset
        full, mixed = self._tiles(logits, low, high)
        larger = (full * (self.rows.sizes[:, None] * self.columns.sizes)).sum((1, 2))
        smaller = larger.clone()
        # (n, P, tile): number of tiles with a pixel of the mask, per row and per column of pixels.
        rows = full.any(2).int()[..., None].repeat(1, 1, self.rows.tile)
        columns = full.any(1).int()[..., None].repeat(1, 1, self.columns.tile)
        for mask, row, column, values in self._upsampled(logits, mixed):
            larger.index_add_(0, mask, (values > low).flatten(1).sum(1))
            smaller.index_add_(0, mask, (values > high).flatten(1).sum(1))
            inside = values > self.threshold
            rows.flatten(0, 1).index_add_(0, mask * rows.shape[1] + row, _any(inside, 2))
            columns.flatten(0, 1).index_add_(0, mask * columns.shape[1] + column, _any(inside, 1))
        (top, bottom), (left, right) = _extent(rows, self.rows.size), _extent(columns, self.columns.size)
        return smaller / larger, torch.stack([left, top, right, bottom], 1)

    def encode(self, logits: Tensor, offset: tuple[int, int], canvas: tuple[int, int]) -> list[bytes]:
        """Encode masks with logits (n, h, w) as COCO's compressed counts in the whole image.

        That has the (height, width) `canvas`; the crop is at the (x, y) `offset`.
        """
        (x, y), (height, width) = offset, (self.rows.size, self.columns.size)
        counts = []
        for single in logits.split(1) if len(logits) else ():
            full, mixed = self._tiles(single, self.threshold, self.threshold)
            # Transposed, because COCO's runs are column-major.
            pixels = full[0].T.cpu().numpy().repeat(self.columns.tile, 0).repeat(self.rows.tile, 1)
            tiles = pixels.reshape(full.shape[2], self.columns.tile, full.shape[1], self.rows.tile).swapaxes(1, 2)
            for _, row, column, values in self._upsampled(single, mixed):
                tiles[column.cpu(), row.cpu()] = (values > self.threshold).mT.cpu().numpy()
            picture = np.zeros(canvas[::-1], np.uint8)
            picture[x : x + width, y : y + height] = pixels[:width, :height]
            counts.append(coco.encode(picture.T)["counts"])
        return counts

    def _tiles(self, logits: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return tiles entirely above `high`, and tiles that may contain a boundary, (n, R, C) bool each.

        All other tiles are entirely below `low`.
        """
        full = self._extremes(logits, torch.amin) > high
        return full, (self._extremes(logits, torch.amax) > low) & ~full

    def _extremes(self, logits: Tensor, extreme: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return a bound of the values that each tile depends on, computed from blocks, (n, R, C)."""
        blocks = extreme(extreme(logits.unflatten(1, (-1, BLOCK)), 2).unflatten(2, (-1, BLOCK)), 3)
        return extreme(extreme(blocks[:, self.rows.blocks], 2)[:, :, self.columns.blocks], 3)

    def _upsampled(self, logits: Tensor, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Evaluate the tiles flagged in (n, R, C); yield mask, row, column (k,) and values (k, r, c) of k at a time.

        Pixels outside the image are NaN, which does not exceed any threshold.
        """
        sources = logits.unfold(1, self.rows.span, 1).unfold(2, self.columns.span, 1)  # a view of all windows
        for index in tiles.nonzero().split(self.tiles_at_once):
            mask, row, column = index.unbind(1)
            values = self.rows.matrices[row] @ sources[mask, self.rows.starts[row], self.columns.starts[column]]
            yield mask, row, column, values @ self.columns.matrices[column].mT


@dataclass(frozen=True)
class _Axis:
    """Tiles along one axis of the image, with the interpolation matrix of each."""

    size: int  # pixels along the axis
    needed: int  # number of low-resolution pixels that these depend on, rounded up to whole blocks
    tile: int  # pixels per tile; the last tile may extend beyond the image
    sizes: Tensor  # (P,) int64: pixels of each tile inside the image
    starts: Tensor  # (P,) int64: first of the `span` low-resolution pixels that each tile depends on
    blocks: Tensor  # (P, any) int64: blocks that contain these pixels
    matrices: Tensor  # (P, tile, span) float32; NaN for pixels outside the image

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


def _extent(counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and last of `size` pixels with nonzero counts (n, P, tile), (n,) each; zeros if none has."""
    inside = (counts.flatten(1)[:, :size] > 0).byte()
    last = size - 1 - inside.flip(1).argmax(1)
    return inside.argmax(1), last * inside.amax(1)


def _any(flags: Tensor, dim: int) -> Tensor:
    """Reduce along an axis by logical or; three times as fast as `Tensor.any` on a CPU."""
    return flags.view(torch.uint8).amax(dim).int()


def _interpolation(low: int, encoder: int, used: int, size: int) -> Tensor:
    """Return the matrix of one axis of the upsampling low -> encoder -> crop to `used` -> size, (size, low)."""
    identity = torch.eye(low)[None]
    enlarged = F.interpolate(identity, encoder, mode="linear", align_corners=False)[..., :used]
    return F.interpolate(enlarged, size, mode="linear", align_corners=False)[0].T
