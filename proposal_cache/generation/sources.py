"""Where images come from: a folder, or a list; and the key that each has in a cache."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from proposal_cache.errors import CacheError
from proposal_cache.store.format import check_key

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

_NAMED = 5  # of many things that are wrong, an error names the first ones

# What turns an image of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[float, float, float, float]


class SourceError(CacheError):
    """Images that are not where they were said to be, or that cannot be told apart by their keys."""


class ImageError(CacheError):
    """One image that cannot be read."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk and its key.

    Attributes:
        boxes: (x0, y0, x1, y1) in pixels of the upright image, to look into more closely; see `with_boxes`.
    """

    key: str
    path: Path
    boxes: tuple[Box, ...] = ()


def image_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """The key of an image: its path under the dataset's image root, without suffix, with `/`.

    >>> image_key("/data/leftImg8bit/val/frankfurt/f_000294_leftImg8bit.png", "/data/leftImg8bit/val")
    'frankfurt/f_000294_leftImg8bit'

    Raises:
        SourceError: if the image does not lie under the root.
    """
    # Links stay as they are: a dataset's images are often links to a place outside its root.
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    parts = Path(relative).parts
    if not parts or parts[0] in (os.pardir, os.curdir) or os.path.isabs(relative):
        raise SourceError(f"{path} does not lie under the image root {root}, so that it has no key")
    return str(PurePosixPath(*parts).with_suffix(""))


def from_folder(folder: str | os.PathLike[str]) -> list[ImageFile]:
    """All images below a folder, by name. Links to folders are followed, but those that lead back.

    One that cannot be looked at, such as a link to a disk that is gone, is among them: reading it will tell.

    Raises:
        SourceError: if there is no such folder, one below it cannot be listed, it holds no image, or `from_list`
            refuses them.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder of images")
    paths = sorted(path for path in _files(root) if path.suffix.lower() in SUFFIXES and _may_be_image(path))
    if not paths:
        raise SourceError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
    return from_list(((image_key(path, root), path) for path in paths), str(root))


def from_list(entries: Iterable[tuple[str, str | os.PathLike[str]]], name: str = "the list") -> list[ImageFile]:
    """The images of (key, path) pairs, in their order; a pair that is there twice counts once.

    Raises:
        SourceError: if one key belongs to two paths, or a cache could not keep one; `name` tells the reader whose.
    """
    images: dict[str, ImageFile] = {}
    unfit: list[tuple[Path, CacheError]] = []
    for key, path in entries:
        try:
            check_key(key)
        except CacheError as error:
            unfit.append((Path(path), error))
            continue
        image = images.setdefault(key, ImageFile(key, Path(path)))
        if image.path != Path(path):
            raise SourceError(f"{name} has two images with the key {key!r}: {image.path} and {path}; rename one")
    if unfit:
        files = _first([str(path) for path, _ in unfit])
        raise SourceError(f"{name} has {len(unfit)} images to be renamed ({files}): {unfit[0][1]}")
    return list(images.values())


def with_boxes(images: Sequence[ImageFile], file: str | os.PathLike[str]) -> tuple[list[ImageFile], str]:
    """The same images, with the boxes that a file gives some of them; and the SHA-256 of the file.

    The file is a json object: key of an image -> list of boxes [x0, y0, x1, y1] in pixels of the upright image.

    Raises:
        SourceError: if the file is no such json, has a key that no image has, or a box outside its image.
    """
    try:
        content = Path(file).read_bytes()
        boxes = json.loads(content)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{file} is no json: {error}") from error
    if not isinstance(boxes, dict) or not all(isinstance(one, list) for one in boxes.values()):
        raise SourceError(f"{file} must be a json object: key of an image -> list of boxes [x0, y0, x1, y1]")
    unknown = sorted(boxes.keys() - {image.key for image in images})
    if unknown:
        raise SourceError(
            f"{file} has {len(unknown)} keys that no image has ({_first(unknown)}); "
            "a key is an image's path under the images' folder, without suffix"
        )
    for image in images:
        if image.key in boxes:
            _check_boxes(image, boxes[image.key], file)
    found = [replace(image, boxes=tuple(map(tuple, boxes.get(image.key, ())))) for image in images]
    return found, hashlib.sha256(content).hexdigest()


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation, as Detectron2 reads it.

    Raises:
        ImageError: if the file is missing, empty, damaged, no image, or too large for the memory.
    """
    try:
        with Image.open(path) as image:
            check_depth(image)
            turn = _TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return np.asarray(upright.convert("RGB"))
    except Exception as error:  # a damaged file can lead Pillow's decoders into nearly any error
        raise ImageError(f"{path} cannot be read as an image: {_reason(path, error)}") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height of an image turned upright; None for one that cannot be read, as `read_image` will tell."""
    try:
        with Image.open(path) as image:
            return (image.height, image.width) if _orientation(image) >= 5 else image.size
    except Exception:
        return None


def check_depth(image: Image.Image) -> None:
    """Raise ValueError for an image of more than 8 bits a channel, which Pillow would turn all but white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")


def _files(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for name, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        folder = Path(name)
        folders[:] = [inner for inner in folders if not _leads_back(folder / inner)]
        yield from (folder / file for file in files)


def _may_be_image(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _leads_back(folder: Path) -> bool:
    """Whether this is a link to a folder that it lies in, so that following it would never end."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _check_boxes(image: ImageFile, boxes: list[Any], file: str | os.PathLike[str]) -> None:
    size = image_size(image.path) if boxes else None
    for box in boxes:
        if not _is_box(box):
            raise SourceError(f"{file}: {box!r:.100} of {image.key!r} is no box [x0, y0, x1, y1] with x0 < x1, y0 < y1")
        if size and not (box[0] < size[0] and box[1] < size[1] and box[2] > 0 and box[3] > 0):
            raise SourceError(f"{file}: the box {box} lies outside {image.path} of {size[0]} x {size[1]} pixels")


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value)
    # the bounds keep out infinity and NaN too
    return numbers and -(2**31) < value[0] < value[2] < 2**31 and -(2**31) < value[1] < value[3] < 2**31


def _orientation(image: Image.Image) -> int:
    """Of EXIF; 1, upright, where it says nothing or is damaged, which does not make the pixels worse."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    return str(error) or type(error).__name__
