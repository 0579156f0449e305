"""Training images of the contour network: photographs with one or more segmentations each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import binary_dilation
from skimage.measure import label as connected_components
from torch import Tensor
from torch.utils.data import Dataset

from proposal_cache.generation.sources import read_image
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError

UNKNOWN = 0  # region id of pixels without a known region
_NEAR = 4  # pixels: distance from a known region up to which boundaries of unknown pixels are trusted
_ANNOTATORS = 4  # segmentations per item, A
_SCALES = (0.5, 1.6)  # of the random resize
_JITTER = 0.35  # of brightness, contrast and saturation
_GREY = 0.05  # share of images without colour

LabelMap = NDArray[np.int32]


@dataclass(frozen=True)
class SegmentedImage:
    """Photograph with its segmentations.

    Attributes:
        image: file of the photograph.
        segmentations: label maps; each is the work of one annotator.
        unknown: label of pixels whose region is not known; None if there are none.
    """

    image: Path
    segmentations: tuple[Path, ...]
    unknown: int | None = None

    def read(self) -> tuple[NDArray[np.uint8], list[LabelMap]]:
        """Return the image (H, W, 3) and connected regions (H, W) per annotator, from 1; `UNKNOWN` has no region."""
        maps = [_read_regions(path, self.unknown) for path in self.segmentations]
        return read_image(self.image), maps


def find_images(root: Path, split: str) -> dict[str, list[SegmentedImage]]:
    """Return the images of a split by dataset: bsds500, ccp and camvid under DETECTRON2_DATASETS.

    Raises:
        DataError: a folder is missing or has no images.
    """
    found = {
        "bsds500": [
            SegmentedImage(image, tuple(sorted((root / f"bsds500/segmentations/{split}").glob(f"{image.stem}_*.png"))))
            for image in _list(root / f"bsds500/images/{split}")
        ]
    }
    for name, unknown in (("ccp", 0), ("camvid", 255)):
        annotations = root / name / "annotations" / split
        found[name] = [
            SegmentedImage(image, (annotations / f"{image.stem}.png",), unknown)
            for image in _list(root / name / "images" / split)
        ]
    for images in found.values():
        missing = [image for image in images if not image.segmentations or not image.segmentations[0].is_file()]
        if missing:
            raise DataError(f"{missing[0].image} has no segmentation beside it; copy the dataset again")
    return found


class ContourDataset(Dataset[dict[str, Tensor]]):
    """Random crops of segmented images with the targets of the network.

    An item has `image` (3, S, S) float32 RGB; `boundary` (S/2, S/2), share of annotators with a boundary; `known`
    (S/2, S/2), 1 where the boundary is known; `regions` (A, S/4, S/4) int64, regions of each of A annotators, 0:
    unknown. Annotators are drawn with replacement.

    Args:
        images: to draw from.
        weights: of each image.
        length: items per epoch.
        crop: side of the crops, S.
        seed: of the random numbers; items are the same in any order of reading.
    """

    def __init__(
        self,
        images: Sequence[SegmentedImage],
        weights: Sequence[float],
        *,
        length: int,
        crop: int = 320,
        seed: int = 0,
    ) -> None:
        self._images = list(images)
        self._chances = np.asarray(weights, np.float64) / np.sum(weights)
        self._length = length
        self._crop = crop
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self._seed, index])
        image, maps = self._images[random.choice(len(self._images), p=self._chances)].read()
        image, maps = _random_crop(image, maps, self._crop, random)
        pixels = jitter(image, random)
        share, known = boundary_targets(maps)
        drawn = random.integers(len(maps), size=_ANNOTATORS)
        return {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)),
            "boundary": torch.from_numpy(share),
            "known": torch.from_numpy(known),
            "regions": torch.from_numpy(np.stack([maps[i][2::4, 2::4] for i in drawn]).astype(np.int64)),
        }


def boundary_targets(maps: Sequence[LabelMap]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the targets of the boundary map of label maps (H, W), at half their size.

    Returns:
        The share of annotators with a boundary within each 2 x 2 pixels, and 1 where it is known: where all
        annotators have a region, and near it.
    """
    shares = [_pool(_boundaries(regions)) for regions in maps]
    unknown = np.any([regions == UNKNOWN for regions in maps], axis=0)
    if not unknown.any():
        return np.mean(shares, axis=0, dtype=np.float32), np.ones_like(shares[0])
    known = binary_dilation(~unknown, iterations=_NEAR)
    return np.mean(shares, axis=0, dtype=np.float32), _pool(known)


def _boundaries(regions: LabelMap) -> NDArray[np.bool_]:
    """Return the pixels with a neighbour of another region, to the right, left, above or below."""
    result = np.zeros(regions.shape, bool)
    for axis in (0, 1):
        one, other = [slice(None)] * 2, [slice(None)] * 2
        one[axis], other[axis] = slice(None, -1), slice(1, None)
        differ = regions[tuple(one)] != regions[tuple(other)]
        result[tuple(one)] |= differ
        result[tuple(other)] |= differ
    return result


def _pool(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the maximum of each 2 x 2 pixels."""
    height, width = mask.shape
    return mask.reshape(height // 2, 2, width // 2, 2).any(axis=(1, 3)).astype(np.float32)


def _random_crop(
    image: NDArray[np.uint8], maps: Sequence[LabelMap], crop: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], list[LabelMap]]:
    """Resize, crop and flip at random; a crop larger than the image continues with its reflection."""
    height, width = image.shape[:2]
    scale = math.exp(random.uniform(math.log(_SCALES[0]), math.log(_SCALES[1])))
    side = min(round(crop / scale), max(height, width))
    top, left = (int(random.integers(0, max(1, length - side + 1))) for length in (height, width))
    flip = random.random() < 0.5

    def cut(array: NDArray[Any], resample: Image.Resampling) -> NDArray[Any]:
        part = array[top : top + side, left : left + side]
        missing = [(0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)][: part.ndim]
        square = np.pad(part, missing, mode="symmetric")
        resized = np.asarray(Image.fromarray(square).resize((crop, crop), resample))
        return resized[:, ::-1] if flip else resized

    pixels = cut(image, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(pixels), [cut(regions, Image.Resampling.NEAREST) for regions in maps]


def jitter(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation at random."""
    picture = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(1 + random.uniform(-_JITTER, _JITTER))
    if random.random() < _GREY:
        picture = picture.convert("L").convert("RGB")
    return np.asarray(picture)


def _read_regions(path: Path, unknown: int | None) -> LabelMap:
    labels = read_label_map(str(path))
    background = -1 if unknown is None else unknown
    return connected_components(labels, background=background, connectivity=1).astype(np.int32)


def _list(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; DETECTRON2_DATASETS must contain bsds500, ccp and camvid")
    images = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    if not images:
        raise DataError(f"no images in {folder} (supported: .jpg, .png); copy the dataset again")
    return images
