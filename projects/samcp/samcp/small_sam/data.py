"""Training images of the small SAM: any images with label maps, prompted with points."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from proposal_cache.generators.backbone import PIXEL_MEAN
from samcp.contours.dataset import UNKNOWN, LabelMap, SegmentedImage, jitter

CELL = 4  # pixels of a mask's logit per side, as in SAM

_ZOOM = 0.35  # smallest window, as a share of the image's sides
_WHOLE = 0.3  # share of the images that are used whole
_MIN_CELLS = 3  # of a region that is prompted
_SMALL = 0.5  # regions are prompted in proportion to their area to this power

Random = np.random.Generator
# Draws an image (H, W, 3) uint8 RGB and its label maps (H, W): regions from 1, `UNKNOWN` has no region.
Draw = Callable[[Random], tuple[NDArray[np.uint8], list[LabelMap]]]


@dataclass(frozen=True)
class PromptedImage:
    """Image in the model's input size S with P point prompts and the label maps of A annotators.

    Attributes:
        image: (3, S, S) float32 RGB, 0 to 255; padding on the right or at the bottom has the mean colour.
        labels: (A, S / 4, S / 4) int64 regions, at the size of mask logits; `UNKNOWN` in the padding.
        points: (P, 2) float32 XY in pixels.
        cells: (P,) int64 index of the logit that contains each point.
    """

    image: Tensor
    labels: Tensor
    points: Tensor
    cells: Tensor

    def targets(self) -> tuple[Tensor, Tensor]:
        """Return the regions that contain the points, (P, A, S² / 16) float32 0 or 1, and where they exist, (P, A)."""
        labels = self.labels.flatten(1)
        own = labels[:, self.cells].T
        return (labels == own[..., None]).float(), own != UNKNOWN


class PromptDataset(Dataset[PromptedImage]):
    """Drawn images with random points.

    Args:
        draw: images with label maps.
        length: items per epoch.
        image_size: side of the model's input, S.
        points: per image.
        seed: of the random numbers; items are the same in any order of reading.
    """

    def __init__(self, draw: Draw, *, length: int, image_size: int, points: int, seed: int = 0) -> None:
        self._draw = draw
        self._length = length
        self._image_size = image_size
        self._points = points
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PromptedImage:
        random = np.random.default_rng([self._seed, index])
        labels = np.empty(0, np.int64)
        while not len(labels):  # a drawn window may lie in an unknown part of its image
            pixels, labels = _fit(*self._draw(random), self._image_size)
        return _prompt(pixels, labels, self._points, _SMALL, random)


@dataclass(frozen=True)
class DrawPhotographs:
    """Draws of random windows of photographs of several datasets.

    Attributes:
        images: by dataset.
        shares: of the draws, by dataset.
    """

    images: Mapping[str, Sequence[SegmentedImage]]
    shares: Mapping[str, float]

    def __call__(self, random: Random) -> tuple[NDArray[np.uint8], list[LabelMap]]:
        name = random.choice(list(self.shares), p=list(self.shares.values()))
        images = self.images[name]
        image, maps = _random_window(*images[random.integers(len(images))].read(), random)
        return jitter(image, random), maps


def prompt_uniformly(
    image: NDArray[np.uint8], maps: Sequence[LabelMap], image_size: int, points: int, random: Random
) -> PromptedImage:
    """Return a whole image with points that are uniform over the known pixels, for validation."""
    return _prompt(*_fit(image, maps, image_size), points, 1.0, random)


def _random_window(
    image: NDArray[np.uint8], maps: Sequence[LabelMap], random: Random
) -> tuple[NDArray[np.uint8], list[LabelMap]]:
    """Cut a window with the aspect of the image, or none, and flip at random."""
    zoom = 1.0 if random.random() < _WHOLE else float(np.exp(random.uniform(np.log(_ZOOM), 0)))
    height, width = (max(1, round(zoom * side)) for side in image.shape[:2])
    top, left = (random.integers(image.shape[axis] - part + 1) for axis, part in enumerate((height, width)))
    step = -1 if random.random() < 0.5 else 1
    rows, columns = slice(top, top + height), slice(left, left + width)
    return np.ascontiguousarray(image[rows, columns][:, ::step]), [m[rows, columns][:, ::step] for m in maps]


def _fit(image: NDArray[np.uint8], maps: Sequence[LabelMap], size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Resize the long side to `size` and pad to a square, as SAM does.

    Returns:
        Pixels (S, S, 3) and label maps (A, S / 4, S / 4), without those that have no region of `_MIN_CELLS`.
    """
    scale = size / max(image.shape[:2])
    height, width = (max(CELL, round(scale * side)) for side in image.shape[:2])
    pixels = np.full((size, size, 3), PIXEL_MEAN, np.uint8)
    pixels[:height, :width] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    rows, columns = (
        (np.arange(CELL / 2, side, CELL) * (whole / side)).astype(np.int64)
        for side, whole in zip((height, width), image.shape[:2], strict=True)
    )
    labels = np.full((len(maps), size // CELL, size // CELL), UNKNOWN, np.int64)
    labels[:, : len(rows), : len(columns)] = [regions[np.ix_(rows, columns)] for regions in maps]
    largest = [np.unique(regions[regions != UNKNOWN], return_counts=True)[1].max(initial=0) for regions in labels]
    return pixels, labels[np.array(largest) >= _MIN_CELLS]


def _prompt(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], points: int, power: float, random: Random
) -> PromptedImage:
    """Draw an annotator per point, a region by its area to the power, and a place in it."""
    cells = np.empty(points, np.int64)
    annotators = random.integers(len(labels), size=points)
    for annotator in np.unique(annotators):
        chosen = annotators == annotator
        flat = labels[annotator].ravel()
        order = np.argsort(flat, kind="stable")
        regions, starts, areas = np.unique(flat[order], return_index=True, return_counts=True)
        weights = np.where((regions != UNKNOWN) & (areas >= _MIN_CELLS), areas.astype(float) ** power, 0.0)
        picked = random.choice(len(regions), size=chosen.sum(), p=weights / weights.sum())
        cells[chosen] = order[starts[picked] + (random.random(len(picked)) * areas[picked]).astype(np.int64)]
    side = labels.shape[-1]
    corners = np.stack([cells % side, cells // side], axis=1)
    return PromptedImage(
        torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)),
        torch.from_numpy(labels),
        torch.from_numpy((CELL * (corners + random.random(corners.shape)) - 0.5).astype(np.float32)),
        torch.from_numpy(cells),
    )
