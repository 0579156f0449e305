"""Full-size masks from SAM's low-resolution logits, enlarged only where a mask may be.

SAM enlarges its logits (256 x 256) twice, bilinearly: to the encoder's input size, then, without the padding, to the
image's size. Both are linear along rows and along columns, so one matrix for the rows and one for the columns do the
two at once. A pixel needs 3 or 4 low-resolution ones side by side: the matrices are cut into tiles of pixels that need
the same few. And an enlarged value lies between those that it is made of: outside the tiles that touch a logit above
the lowest threshold there is nothing to compute, to count or to compare.

Shapes: n masks, h x w low-resolution logits, H x W image; h', w', H', W' of a window in these. Enlarged values are kept
columns first, the order of COCO's run lengths.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

TILE = 16  # low-resolution pixels along the side of a tile
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
        memory_budget: bytes for the masks enlarged at once. On a CPU that is one at a time, in a window of its own.
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
        mask_bytes = 4 * FLOAT_BYTES * image_size[0] * image_size[1]
        self.masks_at_once = 1 if _is_cpu(device) else max(1, memory_budget // mask_bytes)

    def score(self, logits: Tensor, stability_offset: float) -> MaskScores:
        """Stability and boxes of masks given by logits (n, h, w) float32."""
        stability = torch.full((len(logits),), float("nan"), device=logits.device)
        boxes = torch.zeros((len(logits), 4), dtype=torch.int64, device=logits.device)
        for start in range(0, len(logits), self.masks_at_once):
            part = slice(start, start + self.masks_at_once)
            window = self._enlarge(logits[part], -stability_offset)
            if window is not None:
                stability[part] = window.count(stability_offset) / window.count(-stability_offset)
                boxes[part] = window.boxes()
        return MaskScores(stability, boxes)

    def encode(self, logits: Tensor, offset: tuple[int, int], canvas: tuple[int, int]) -> list[bytes]:
        """COCO-compressed counts of the masks of logits (n, h, w), the image being a part of a canvas (height, width).

        `offset` is the (x, y) of the image in the canvas.
        """
        counts = []
        for one in logits.split(1) if len(logits) else ():
            pixels = np.zeros(canvas[::-1], np.uint8)
            window = self._enlarge(one, 0.0)
            if window is not None:
                inside = (window.values[0] > 0).cpu().numpy()
                x, y = offset[0] + window.left, offset[1] + window.top
                pixels[x : x + inside.shape[0], y : y + inside.shape[1]] = inside
            counts.append(coco.encode(pixels.T)["counts"])
        return counts

    def _enlarge(self, logits: Tensor, lowest: float) -> "_Window | None":
        """The part of the image outside which no mask of logits (n, h, w) exceeds the threshold plus `lowest`.

        None where none does anywhere. The threshold is subtracted from the values.
        """
        logits = logits - self.threshold
        rows = self.rows.tiles(logits.amax((0, 2)) > lowest)
        columns = self.columns.tiles(logits.amax((0, 1)) > lowest)
        if rows is None or columns is None:
            return None
        used = self.columns.used(columns)
        values = self.rows.enlarge(logits[:, :, used], rows, 0)  # (n, H', w')
        values = self.columns.enlarge(values.transpose(1, 2).contiguous(), columns, used.start)  # (n, W', H')
        return _Window(values, self.columns.tile * columns.start, self.rows.tile * rows.start)


@dataclass(frozen=True)
class _Window:
    """Enlarged logits of n masks in a part of the image; below all thresholds elsewhere."""

    values: Tensor
    """(n, W', H') float32."""
    left: int
    top: int

    def count(self, threshold: float) -> Tensor:
        """(n,) float32: how many values of each mask exceed a threshold."""
        if not _is_cpu(self.values.device):
            return (self.values > threshold).sum((1, 2)).float()
        # numpy counts booleans several times faster than torch does.
        counts = [np.count_nonzero(mask > threshold) for mask in self.values.numpy()]
        return torch.tensor(counts, dtype=torch.float32)

    def boxes(self) -> Tensor:
        """(n, 4) int64 XYXY, last pixel included, of the pixels above 0; zeros where there are none."""
        by_column = self.values.amax(2)
        x0, x1 = _ends(by_column > 0)
        y0, y1 = _ends(self.values.amax(1) > 0)
        boxes = torch.stack([x0 + self.left, y0 + self.top, x1 + self.left, y1 + self.top], 1)
        return boxes * (by_column.amax(1) > 0)[:, None]


@dataclass(frozen=True)
class _Axis:
    """One axis of the image in tiles of pixels, each with the matrix that makes it of a few low-resolution pixels."""

    size: int
    """Pixels."""
    tile: int
    """Pixels of a tile; the last one may reach beyond the image."""
    starts: list[int]
    """First low-resolution pixel of each of P tiles."""
    sources: Tensor
    """(P, span) int64: all low-resolution pixels of each."""
    matrices: Tensor
    """(P, tile, span) float32."""

    @staticmethod
    def of(low: int, encoder: int, used: int, size: int, device: torch.device) -> "_Axis":
        weights = _interpolation(low, encoder, used, size)
        tile = max(1, round(TILE * size * encoder / (low * used)))
        blocks = F.pad(weights, (0, 0, 0, -size % tile)).unflatten(0, (-1, tile))
        touched = (blocks != 0).any(1).int()
        first, end = touched.argmax(1), low - touched.flip(1).argmax(1)
        span = int((end - first).max())
        first = first.clamp(max=low - span)
        sources = first[:, None] + torch.arange(span)
        matrices = torch.gather(blocks, 2, sources[:, None].expand(-1, tile, -1))
        return _Axis(size, tile, first.tolist(), sources.to(device), matrices.to(device))

    def tiles(self, flags: Tensor) -> slice | None:
        """The tiles that need any of the low-resolution pixels between the first and the last flagged one."""
        flagged = flags.nonzero()
        if len(flagged) == 0:
            return None
        start = bisect_right(self.starts, int(flagged[0]) - self.sources.shape[1])
        stop = bisect_right(self.starts, int(flagged[-1]))
        return slice(start, stop) if start < stop else None

    def used(self, tiles: slice) -> slice:
        """The low-resolution pixels that some tiles need."""
        return slice(self.starts[tiles.start], self.starts[tiles.stop - 1] + self.sources.shape[1])

    def enlarge(self, x: Tensor, tiles: slice, first: int) -> Tensor:
        """Low-resolution pixels from `first` on, (n, low, any), to the pixels of some tiles, (n, pixels, any)."""
        enlarged = (self.matrices[tiles] @ x[:, self.sources[tiles] - first]).flatten(1, 2)
        return enlarged[:, : self.size - tiles.start * self.tile]


def _is_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def _ends(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first and the last true value in each row of (n, k)."""
    return flags.int().argmax(1), flags.shape[1] - 1 - flags.flip(1).int().argmax(1)


def _interpolation(low: int, encoder: int, used: int, size: int) -> Tensor:
    """(size, low): one axis of the enlargement low -> encoder -> the first `used` of these -> size."""
    identity = torch.eye(low)[None]
    enlarged = F.interpolate(identity, encoder, mode="linear", align_corners=False)[..., :used]
    return F.interpolate(enlarged, size, mode="linear", align_corners=False)[0].T
