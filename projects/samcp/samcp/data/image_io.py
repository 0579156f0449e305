"""Reading of images, turned upright by their EXIF orientation."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy

from proposal_cache.errors import reason
from proposal_cache.generation.sources import exif_orientation, open_image, turn_upright, upright_size
from samcp.errors import DataError


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, turned upright as the generators of patches do.

    Args:
        path: of the file.
        image_format: a PIL mode or "BGR".

    Raises:
        DataError: the image is missing, unreadable, or has more than 8 bits per channel.
    """
    with _data_errors(path), open_image(path) as image:
        return convert_PIL_to_numpy(turn_upright(image), image_format)


def read_image_size(path: str) -> tuple[int, int]:
    """Read the (height, width) of an image after it is turned upright.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _data_errors(path), open_image(path) as image:
        width, height = upright_size(image)
        return height, width


def read_exif_orientation(path: str) -> int:
    """Read the EXIF orientation of an image: 1 if it is upright, above 4 if width and height are swapped.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _data_errors(path), open_image(path) as image:
        return exif_orientation(image)


@contextmanager
def _data_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError.missing(path, "image") from error
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all of them for damaged files
        raise DataError(
            f"{path}: the image cannot be read ({reason(error)}); replace it, or take it out of the dataset"
        ) from error
