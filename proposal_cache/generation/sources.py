"""Images of a folder or a list, their keys, and reading them; see `streams` for URLs and tar shards."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from proposal_cache.errors import CacheError, reason
from proposal_cache.store.format import check_key

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

# Pillow's formats with these suffixes. Without the list, it would start Ghostscript for EPS under any name.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 1 << 27  # per image; a worker needs about 12 bytes per pixel
_NAMED = 5  # files or keys listed in an error message
_FAR = 2**31  # pixels that no coordinate of a box exceeds

# Transposition that corrects each EXIF orientation. ImageOps.exif_transpose fails on damaged EXIF, which is common.
_TRANSPOSITIONS = {
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
    """Images cannot be found, or their keys are not unique."""


class ImageError(CacheError):
    """File of an image, or of its masks, cannot be read."""


@dataclass(frozen=True)
class ImageFile:
    """Image on disk or at a URL of any fsspec file system."""

    key: str
    url: str  # or path
    boxes: tuple[Box, ...] = ()  # (x0, y0, x1, y1) in pixels of the upright image to search again; see `with_boxes`
    data: bytes | None = None  # content of the file; None to read it when it is needed

    @property
    def path(self) -> Path:
        """The path of an image on disk."""
        return Path(self.url)

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels; see `read_image`."""
        return read_image(self.url, self.data)

    def fetch(self) -> "ImageFile":
        """Return the image with its data; raises ImageError as `read_image`."""
        return self if self.data is not None else replace(self, data=read_file(self.url))


def open_url(url: str) -> Any:
    """Return a context manager that opens a file, by its path or URL, for reading bytes."""
    if "://" not in url:
        _reject_pipe(url)
        return open(url, "rb")
    import fsspec  # a third of a second

    return fsspec.open(url, "rb")


def absolute(url: str) -> str:
    """Return a URL, or the absolute path of a file, without resolving links."""
    return url if "://" in url else os.path.abspath(url)


def read_file(url: str) -> bytes:
    """Return the content of a file at a path or URL; raise ImageError if it cannot be read or is a pipe."""
    try:
        with open_url(url) as file:
            content: bytes = file.read()
    except Exception as error:  # each file system has its own exceptions
        raise ImageError(f"{url} cannot be read: {reason(error)}") from error
    return content


def image_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """Return the key of an image: its path under the dataset's image root, without suffix, with `/`.

    >>> image_key("/data/leftImg8bit/val/frankfurt/f_000294_leftImg8bit.png", "/data/leftImg8bit/val")
    'frankfurt/f_000294_leftImg8bit'
    """
    # Links are not resolved: a dataset's images are often links to files outside its root.
    parts = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(root))).parts
    if not parts or parts[0] == os.pardir:
        raise SourceError(f"{path} is not under the image root {root}, so it has no key")
    return str(PurePosixPath(*parts).with_suffix(""))


def from_folder(folder: str | os.PathLike[str]) -> list[ImageFile]:
    """Return all images in a folder and its subfolders, sorted by path. Links are followed unless they form a cycle.

    Broken links are included, so that reading them reports an error.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder")
    paths = sorted(path for path in _files(root) if path.suffix.lower() in SUFFIXES)
    # Without pipes, which block, but with what cannot be accessed.
    paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    if not paths:
        raise SourceError(f"no images in {root} (supported: {', '.join(sorted(SUFFIXES))})")
    return from_list(((image_key(path, root), path) for path in paths), str(root))


def from_list(entries: Iterable[tuple[str, str | os.PathLike[str]]], name: str = "the list") -> list[ImageFile]:
    """Return the images of (key, path or URL) pairs, in order; repeated pairs are dropped. Errors contain `name`."""
    images: dict[str, ImageFile] = {}
    invalid: list[tuple[str, CacheError]] = []
    for key, path in entries:
        url = os.fspath(path)
        try:
            check_key(key)
        except CacheError as error:
            invalid.append((url, error))
            continue
        image = images.setdefault(key, ImageFile(key, url))
        if image.url != url:
            raise SourceError(f"{name} has two images with the key {key!r}: {image.url} and {url}; rename one")
    if invalid:
        files = _first([url for url, _ in invalid])
        raise SourceError(f"rename {len(invalid)} images of {name} ({files}): {invalid[0][1]}")
    return list(images.values())


def with_boxes(images: Sequence[ImageFile], file: str | os.PathLike[str]) -> tuple[list[ImageFile], str]:
    """Return the images with the boxes listed in a json file, and the SHA-256 of the file.

    The file is a json object: key of an image -> list of boxes [x0, y0, x1, y1] in pixels of the upright image.
    """
    try:
        content = Path(file).read_bytes()
        boxes = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read as json: {reason(error)}") from error
    if not isinstance(boxes, dict) or not all(isinstance(one, list) for one in boxes.values()):
        raise SourceError(f"{file} must be a json object: key of an image -> list of boxes [x0, y0, x1, y1]")
    unknown = sorted(boxes.keys() - {image.key for image in images})
    if unknown:
        raise SourceError(
            f"{file} has {len(unknown)} keys that are not images ({_first(unknown)}); "
            "a key is an image's path under the image folder, without suffix"
        )
    for image in images:
        if image.key in boxes:
            _check_boxes(image, boxes[image.key], file)
    found = [replace(image, boxes=tuple(map(tuple, boxes.get(image.key, ())))) for image in images]
    return found, hashlib.sha256(content).hexdigest()


def read_image(path: str | os.PathLike[str], data: bytes | None = None) -> NDArray[np.uint8]:
    """Return an image at a path or URL as (H, W, 3) uint8 RGB, upright according to its EXIF orientation.

    `data` is the content of the file, if it has been read. Raises ImageError if the file is missing, empty, damaged,
    not an image, or too large for the memory.
    """
    data = read_file(os.fspath(path)) if data is None else data
    try:
        if not data:
            raise ValueError("the file is empty")
        with open_image(io.BytesIO(data)) as image:
            upright = turn_upright(image)
            return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
        raise ImageError(f"{path} cannot be read as an image: {reason(error)}") from error


def open_image(file: str | BinaryIO) -> Image.Image:
    """Open a file as one of the supported formats, whatever its suffix.

    Raises ValueError if it has more than MAX_PIXELS, and what Pillow raises. The checksums of a PNG are checked: Pillow
    does not check those of pixels when it loads them, so that a damaged label map would be read with other labels.
    """
    if isinstance(file, str):
        _reject_pipe(file)
    try:
        image = Image.open(file, formats=_FORMATS)
        if image.format == "PNG":
            with image:
                image.verify()
            if not isinstance(file, str):
                file.seek(0)
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error}; split it into tiles") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, at most {MAX_PIXELS} are supported; split it into tiles"
        )
    return image


def turn_upright(image: Image.Image) -> Image.Image:
    """Decode an image that was opened by Pillow, and turn it upright according to its EXIF orientation.

    All parts of the project that read images use this function, so that patches and annotations fit the pixels. Raises
    ValueError if the image has more than 8 bits per channel, which Pillow would convert to almost white.
    """
    _check_depth(image)
    image.load()  # first: Pillow turns a TIFF upright here, and finds EXIF behind the pixels of a PNG
    transposition = _TRANSPOSITIONS.get(exif_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the result of `turn_upright`, with its errors; decodes TIFF and PNG only."""
    if image.format == "TIFF":
        return turn_upright(image).size
    _check_depth(image)
    return (image.height, image.width) if exif_orientation(image) >= 5 else image.size


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return width and height of an image turned upright; None if it cannot be read."""
    try:
        with open_url(os.fspath(path)) as file, open_image(file) as image:
            return upright_size(image)
    except Exception:
        return None


def _reject_pipe(path: str) -> None:
    """Raise OSError for a pipe or device, which might block for ever."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError("it is not a file")


def _check_depth(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits first")


def _files(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for name, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        folder = Path(name)
        folders[:] = [inner for inner in folders if not _is_cycle(folder / inner)]
        yield from (folder / file for file in files)


def _is_cycle(folder: Path) -> bool:
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _check_boxes(image: ImageFile, boxes: list[Any], file: str | os.PathLike[str]) -> None:
    size = image_size(image.url) if boxes else None
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(number) in (int, float) for number in box)
        # The bounds also reject infinity and NaN.
        if not (numbers and -_FAR < box[0] < box[2] < _FAR and -_FAR < box[1] < box[3] < _FAR):
            raise SourceError(
                f"{file}: {box!r:.100} of {image.key!r} is not a box [x0, y0, x1, y1] with x0 < x1, y0 < y1"
            )
        if size and not (box[0] < size[0] and box[1] < size[1] and box[2] > 0 and box[3] > 0):
            raise SourceError(f"{file}: the box {box} is outside {image.url} of {size[0]} x {size[1]} pixels")


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if there is none or EXIF is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
