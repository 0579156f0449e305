"""Where images come from: a folder, a COCO json, or a list; and the key that each has in a cache."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from proposal_cache.errors import CacheError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


class SourceError(CacheError):
    """Images that are not where they were said to be, or that cannot be told apart by their keys."""


class ImageError(CacheError):
    """One image that cannot be read."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk and its key."""

    key: str
    path: Path


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
    """All images below a folder, by name.

    Raises:
        SourceError: if there is no such folder, it holds no image, or two images have the same key.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder of images")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise SourceError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
    return from_list(((image_key(path, root), path) for path in paths), str(root))


def from_coco_json(annotations: str | os.PathLike[str], image_root: str | os.PathLike[str]) -> list[ImageFile]:
    """The images that a COCO json lists, in its order.

    Raises:
        SourceError: if the file is no COCO json, or two images have the same key.
    """
    try:
        names = [str(image["file_name"]) for image in json.loads(Path(annotations).read_bytes())["images"]]
    except OSError as error:
        raise SourceError(f"{annotations} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{annotations} is no COCO json with a list of images: {error!r}") from error
    root = Path(image_root)
    return from_list(((image_key(root / name, root), root / name) for name in names), str(annotations))


def from_list(entries: Iterable[tuple[str, str | os.PathLike[str]]], name: str = "the list") -> list[ImageFile]:
    """The images of (key, path) pairs, in their order; a pair that is there twice counts once.

    Raises:
        SourceError: if one key belongs to two paths; `name` tells the reader whose.
    """
    images: dict[str, ImageFile] = {}
    for key, path in entries:
        image = images.setdefault(key, ImageFile(key, Path(path)))
        if image.path != Path(path):
            raise SourceError(f"{name} has two images with the key {key!r}: {image.path} and {path}; rename one")
    return list(images.values())


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation, as Detectron2 reads it.

    Raises:
        ImageError: if the file is missing, empty, damaged, or no image.
    """
    try:
        with Image.open(path) as image:
            check_depth(image)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image: {_reason(path, error)}") from error


def check_depth(image: Image.Image) -> None:
    """Raise ValueError for an image of more than 8 bits a channel, which Pillow would turn all but white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    return str(error)
