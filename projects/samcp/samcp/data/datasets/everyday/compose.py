"""Photographs with objects of others pasted in, to learn Prompt II from few annotated ones.

The augmentation of Ghiasi et al., Simple Copy-Paste (CVPR 2021), made once, since patches are made once per image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from proposal_cache.generation.sources import read_image
from samcp.data.files import write_image

_MIN_CUTOUT = 0.01  # of the image; smaller objects would be enlarged too much
_PERSONS = 0.25  # share of the pasted objects
_MOST = 3  # objects per image
_SIZES = (0.12, 0.8)  # square root of the area of a pasted box, over that of the image
_MOST_ENLARGED = 2.0
_HIDDEN = 0.15  # an object of which less is visible is no longer one
_BRIGHTNESS = (0.75, 1.25)
_OUTSIDE = 0.15  # of a pasted box, at most, on each side
_SEED = 7

Random = np.random.Generator
# An image, and a function that reads maps (H, W) of its objects, 0 for none. Objects of two maps may overlap.
Source = tuple[Path, Callable[[], list[NDArray[np.integer]]]]


@dataclass(frozen=True)
class Composer:
    """Pastes up to three objects on each photograph, and writes JPEG files.

    Attributes:
        photographs: with one map of objects; each is used equally often.
        persons: further photographs whose objects are pasted.
        folder: of the files.
    """

    photographs: Sequence[Source]
    persons: Sequence[Source]
    folder: Path

    def __call__(self, index: int) -> tuple[Path, NDArray[np.int32]]:
        """Write image number `index`, which is the same in every run; return its file and the map of its objects."""
        random = np.random.default_rng([_SEED, index])
        pixels, objects = self._compose(self.photographs[index % len(self.photographs)], random)
        file = self.folder / f"{index:05d}.jpg"
        write_image(file, pixels, "JPEG", quality=92)
        return file, objects

    def _compose(self, photograph: Source, random: Random) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        step = -1 if random.random() < 0.5 else 1
        pixels, objects = _read(photograph)
        pixels, objects = pixels[:, ::step].copy(), objects[:, ::step].copy()
        areas = _areas(objects)
        for _ in range(random.integers(1, _MOST + 1)):
            sources = self.persons if random.random() < _PERSONS else self.photographs
            cutouts = cut_out(*_read(sources[random.integers(len(sources))]))
            if cutouts:
                number = max(areas, default=0) + 1
                areas[number] = _paste(cutouts[random.integers(len(cutouts))], pixels, objects, number, random)
        visible = _areas(objects)
        hidden = [number for number, area in areas.items() if visible.get(number, 0) < _HIDDEN * area]
        objects[np.isin(objects, hidden)] = 0
        return pixels, objects


@dataclass(frozen=True)
class Cutout:
    """Object in its bounding box.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        mask: (h, w) bool.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def cut_out(pixels: NDArray[np.uint8], objects: NDArray[np.integer]) -> list[Cutout]:
    """Return the objects of a photograph (H, W, 3) with a map (H, W) that are at least 1 % of it."""
    found = []
    for number, area in _areas(objects).items():
        if area >= _MIN_CUTOUT * objects.size:
            mask = objects == number
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            found.append(Cutout(pixels[box], mask[box]))
    return found


def _read(source: Source) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    image, read_objects = source
    return read_image(image), read_objects()[0].astype(np.int32)


def _areas(objects: NDArray[np.integer]) -> dict[int, int]:
    numbers, counts = np.unique(objects[objects > 0], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _paste(cutout: Cutout, pixels: NDArray[np.uint8], objects: NDArray[np.int32], number: int, random: Random) -> int:
    """Paste an object at a random place and size, and return its area in the image."""
    height, width = objects.shape
    rows, columns = cutout.mask.shape
    size = np.exp(random.uniform(*np.log(_SIZES))) * np.sqrt(height * width / (rows * columns))
    scale = min(size, _MOST_ENLARGED, 1.1 * height / rows, 1.1 * width / columns)
    color, alpha = _resize(cutout, max(8, round(rows * scale)), max(8, round(columns * scale)))
    if random.random() < 0.5:
        color, alpha = color[:, ::-1], alpha[:, ::-1]
    color = np.clip(color * random.uniform(*_BRIGHTNESS), 0, 255)
    inside, kept = zip(
        *(_overlap(part, whole, random) for part, whole in zip(alpha.shape, objects.shape, strict=True)), strict=True
    )
    color, alpha = color[kept], alpha[kept][..., None]
    pixels[inside] = (alpha * color + (1 - alpha) * pixels[inside]).astype(np.uint8)
    objects[inside][alpha[..., 0] > 0.5] = number
    return int((alpha > 0.5).sum())


def _resize(cutout: Cutout, rows: int, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the colours (rows, columns, 3) and the opacity, with a soft border, (rows, columns) from 0 to 1."""
    mask = Image.fromarray(cutout.mask.astype(np.uint8) * 255).resize((columns, rows), Image.Resampling.BILINEAR)
    color = Image.fromarray(np.ascontiguousarray(cutout.pixels)).resize((columns, rows), Image.Resampling.LANCZOS)
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.7)), np.float32) / 255
    return np.asarray(color, np.float32), soft


def _overlap(part: int, whole: int, random: Random) -> tuple[slice, slice]:
    """Return the pixels of the image, and those of the object, where they lie on each other along one axis."""
    start = int(random.uniform(-_OUTSIDE * part, whole - (1 - _OUTSIDE) * part))
    first, last = max(0, start), min(whole, start + part)
    return slice(first, last), slice(first - start, last - start)
