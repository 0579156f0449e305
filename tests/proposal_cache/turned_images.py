"""An image, and files of it with each EXIF orientation."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

_CORNERS = [[(250, 0, 0), (0, 250, 0), (0, 0, 250)], [(0, 0, 0), (250, 250, 250), (250, 250, 0)]]
UPRIGHT = np.array(_CORNERS, np.uint8).repeat(16, axis=0).repeat(16, axis=1)  # whole blocks of a JPEG

# Pixels in the file for each orientation.
_STORED = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: np.rot90,
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


def write_turned(path: Path, image: np.ndarray, orientation: int) -> None:
    """Write an image (H, W, 3) so that it is upright after its EXIF orientation is applied."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"compression": "tiff_lzw"} if path.name.endswith(".lzw.tif") else {"quality": 95, "subsampling": 0}
    Image.fromarray(np.ascontiguousarray(_STORED[orientation](image))).save(path, exif=exif, **options)
