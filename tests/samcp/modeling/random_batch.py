"""Random feature maps, patches and denoising queries, as a padded batch and as single images."""

import torch
from torch import Tensor

from samcp.modeling.denoising import DenoisingQueries
from samcp.modeling.patch_batch import PatchBatch
from tests.samcp.modeling import literal_network as literal

DIM, CLASSES, ROI_SIZE = 16, 5, 3
STRIDES = (4, 8, 16, 32)
PADDED = (448, 512)
SIZES = [(448, 512), (300, 330)]


class Batch:
    """Batch of random images.

    Args:
        counts: number of patches per image.
        shrink: divisor of the image sizes, for tests that loop over all cells of the feature maps.
    """

    def __init__(self, *counts: int, shrink: int = 1) -> None:
        height, width = PADDED[0] // shrink // 32 * 32, PADDED[1] // shrink // 32 * 32
        self.levels = [torch.randn(len(counts), DIM, height // s, width // s) for s in STRIDES]
        self.sizes = [(h // shrink // 2 * 2, w // shrink // 2 * 2) for h, w in SIZES[: len(counts)]]
        self.patches = PatchBatch(
            boxes=torch.zeros(len(counts), max(1, *counts), 4),
            roi_masks=torch.zeros(len(counts), max(1, *counts), ROI_SIZE, ROI_SIZE),
            valid=torch.tensor([[n < count for n in range(max(1, *counts))] for count in counts]),
            image_sizes=torch.tensor(self.sizes),
        )
        for i, count in enumerate(counts):
            self.patches.boxes[i, :count] = random_boxes(count, self.sizes[i], 33 // shrink)
            self.patches.roi_masks[i, :count] = torch.rand(count, ROI_SIZE, ROI_SIZE)

    def image(self, i: int) -> literal.Image:
        valid = self.patches.valid[i]
        levels = {stride: level[i] for stride, level in zip(STRIDES, self.levels, strict=True)}
        return literal.Image(*self.sizes[i], self.patches.boxes[i, valid], self.patches.roi_masks[i, valid], levels)


def random_boxes(count: int, size: tuple[int, int], smallest: int) -> Tensor:
    """Return boxes from `smallest` pixels to nearly the whole image.

    Corners are odd numbers, so that none coincides with the centre of a feature cell.
    """
    boxes = torch.zeros(count, 4)
    for n in range(count):
        for axis, length in ((0, size[1]), (1, size[0])):
            extent = smallest + (length - smallest - 2) * (n + torch.rand(()).item()) / count
            low = torch.rand(()).item() * (length - 1 - extent)
            boxes[n, axis], boxes[n, axis + 2] = low // 2 * 2 + 1, (low + extent) // 2 * 2 + 1
    return boxes


def make_denoising(valid: list[list[bool]], group: list[int]) -> DenoisingQueries:
    corners = torch.rand(len(valid), len(group), 2, 2).sort(dim=2).values
    return DenoisingQueries(
        labels=torch.randint(CLASSES, (len(valid), len(group))),
        boxes=corners.flatten(2),
        entity=torch.zeros(len(group), dtype=torch.long),
        positive=torch.ones(len(group), dtype=torch.bool),
        group=torch.tensor(group),
        valid=torch.tensor(valid),
    )
