"""Training data of the small CLIP: drawn scenes, crops of them, and captions of their regions."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from samcp.miniature.captions import Caption, Region, caption, regions_of
from samcp.miniature.objects import Mask
from samcp.miniature.scenes import STYLES, DrawnScene, draw_scene
from samcp.miniature.world import STUFF, THINGS

MASK_STRIDE = 4  # pixels of a scene per cell of a region's weights

# Share of the styles among the training images. CLIP has seen all of them, as it has seen anything in photographs.
_SHARES = {"open_val": 0.7, "shifted_val": 0.1, "camouflage_val": 0.1, "tiny_val": 0.1}
_REGIONS = 12  # at most, of a scene
_MIN_PIXELS = 40  # of a region
_CROPS = {"thing": 0.55, "part": 0.2, "stuff": 0.2, "scene": 0.05}  # shares
_MARGIN = (1.05, 1.6)  # range of a crop's side, in longest sides of its object
_MIN_SIDE = 24  # of a crop, in pixels of the scene
_STUFF_SIDES = (24, 140)  # of crops of stuff
_STUFF_SHARE = 0.6  # least share of the pixels of such a crop
_TRIES = 8  # of its place


@dataclass(frozen=True)
class CaptionedScene:
    """Scene with R regions and K crops of S x S pixels.

    Attributes:
        image: (3, H, W) uint8 RGB.
        weights: (R, H / 4, W / 4) share of each cell that a region covers.
        crops: (K, 3, S, S) uint8 RGB.
        regions: R, and then those of the K crops.
        captions: of `regions`.
    """

    image: Tensor
    weights: Tensor
    crops: Tensor
    regions: Sequence[Region]
    captions: Sequence[Caption]


class CaptionDataset(Dataset[CaptionedScene]):
    """Drawn scenes with captions.

    Args:
        length: items per epoch.
        crops: per scene.
        crop_size: side in pixels.
        seed: of the random numbers; items are the same in any order of reading.
    """

    def __init__(self, *, length: int, crops: int, crop_size: int, seed: int = 0) -> None:
        self._length = length
        self._crops = crops
        self._crop_size = crop_size
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> CaptionedScene:
        random = np.random.default_rng([self._seed, index])
        style = str(random.choice(list(_SHARES), p=list(_SHARES.values())))
        scene = draw_scene(random, STYLES[style])
        found = [region for region in regions_of(scene) if region.mask.sum() >= _MIN_PIXELS]
        chosen = _choose_regions(random, found)
        cropped = [_choose_crop(random, found) for _ in range(self._crops)]
        crops = [crop(random, scene, region, self._crop_size) for region in cropped]
        regions = [*chosen, *(region.without_size() for region in cropped)]
        return CaptionedScene(
            to_tensor(scene.image),
            cell_weights([region.mask for region in chosen]),
            torch.stack(crops),
            regions,
            [caption(random, region) for region in regions],
        )


def cell_weights(masks: Sequence[Mask]) -> Tensor:
    """Return the share of each cell that a mask covers, (R, H / 4, W / 4)."""
    return F.avg_pool2d(torch.from_numpy(np.stack(masks))[:, None].float(), MASK_STRIDE)[:, 0]


def crop(random: Generator, scene: DrawnScene, region: Region, size: int) -> Tensor:
    """Return a square crop (3, size, size) uint8 with some context of a region."""
    window = _stuff_window(random, region.mask) if region.name in STUFF else _window(random, region.mask)
    interpolation = cv2.INTER_AREA if len(scene.image[window]) > size else cv2.INTER_LINEAR
    return to_tensor(np.asarray(cv2.resize(scene.image[window], (size, size), interpolation=interpolation), np.uint8))


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return an image (H, W, 3) as (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _choose_regions(random: Generator, regions: Sequence[Region]) -> list[Region]:
    """Return all stuff and things, and random parts."""
    objects = [region for region in regions if region.name in (*THINGS, *STUFF)]
    parts = [region for region in regions if _kind(region) == "part"]
    order = random.permutation(len(parts))
    return [*objects, *(parts[i] for i in order)][:_REGIONS]


def _choose_crop(random: Generator, regions: Sequence[Region]) -> Region:
    """Return a random region of a random kind."""
    kinds = [kind for kind in _CROPS if any(_kind(region) == kind for region in regions)]
    shares = np.array([_CROPS[kind] for kind in kinds])
    kind = kinds[random.choice(len(kinds), p=shares / shares.sum())]
    candidates = [region for region in regions if _kind(region) == kind]
    return candidates[random.integers(len(candidates))]


def _kind(region: Region) -> str:
    for kind, names in (("thing", THINGS), ("stuff", STUFF), ("scene", ("scene",))):
        if region.name in names:
            return kind
    return "part"


def _window(random: Generator, mask: Mask) -> tuple[slice, slice]:
    """Return a square window around a mask."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(_MIN_SIDE, longest * random.uniform(*_MARGIN))
    free = (side - longest) / 4
    centre = [(values[0] + values[-1] + 1) / 2 + random.uniform(-free, free) for values in (rows, columns)]
    return _square(mask, centre, side)


def _stuff_window(random: Generator, mask: Mask) -> tuple[slice, slice]:
    """Return a square window that a mask mostly fills, if one is found soon."""
    pixels = np.argwhere(mask)
    best, most = _square(mask, pixels[0], _MIN_SIDE), 0.0
    for _ in range(_TRIES):
        window = _square(mask, pixels[random.integers(len(pixels))], random.uniform(*_STUFF_SIDES))
        share = float(mask[window].mean())
        if share > most:
            best, most = window, share
        if share >= _STUFF_SHARE:
            break
    return best


def _square(mask: Mask, centre: Sequence[float] | NDArray[np.int64], side: float) -> tuple[slice, slice]:
    """Return the window of a side around a centre YX, moved and shortened to lie in the image."""
    height, width = mask.shape
    length = min(round(side), height, width)
    top, left = (
        int(np.clip(round(float(at) - length / 2), 0, extent - length))
        for at, extent in zip(centre, (height, width), strict=True)
    )
    return slice(top, top + length), slice(left, left + length)
