"""Conversion between compressed counts and the segmentations of COCO json files.

Segmentations are validated before pycocotools sees them, which does not check its input and may crash.
"""

import math
from itertools import pairwise
from typing import Any

from pycocotools import mask as coco

from proposal_cache.errors import MaskError, abbreviate
from proposal_cache.rle.codec import check, require_size

# pycocotools rasterizes a polygon in steps of a fifth of a pixel and allocates memory for all steps.
_MAX_DISTANCE = 10  # from the image to a vertex, in lengths of the image's longer side
_MAX_OUTLINE = 1 << 21  # pixels along one polygon


def to_json(counts: bytes, height: int, width: int) -> dict[str, Any]:
    """Return a mask as a COCO json file stores it.

    >>> rle.to_json(b"522", height=3, width=3)
    {'size': [3, 3], 'counts': '522'}
    """
    return {"size": [height, width], "counts": counts.decode("ascii")}


def from_json(segmentation: Any, height: int, width: int) -> bytes:
    """Return the compressed counts of a COCO segmentation: compressed or uncompressed RLE, or a list of polygons.

    >>> rle.from_json({"size": [3, 3], "counts": "522"}, height=3, width=3)
    b'522'
    >>> rle.from_json({"size": [3, 3], "counts": [5, 2, 2]}, height=3, width=3)
    b'522'
    >>> rle.area([rle.from_json([[0, 0, 2, 0, 2, 3, 0, 3]], height=3, width=3)], height=3, width=3)
    array([6])

    Raises MaskError as `check_json`.
    """
    check_json(segmentation, height, width)
    if isinstance(segmentation, list):
        return coco.merge(coco.frPyObjects(segmentation, height, width))["counts"]
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return _as_bytes(counts)


def check_json(segmentation: Any, height: int, width: int) -> None:
    """Raise MaskError if a COCO segmentation is in none of the forms of `from_json` or does not match the image size.

    >>> rle.check_json({"size": [3, 3], "counts": "52"}, height=3, width=3)
    Traceback (most recent call last):
    proposal_cache.errors.MaskError: mask 0 does not match the image size: its runs cover 7 pixels, ...
    """
    require_size(height, width)
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        return
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise MaskError(
            "segmentation must be a list of polygons or a dict with 'size' and 'counts', "
            f"not {abbreviate(segmentation)}"
        )
    if segmentation["size"] not in ([height, width], (height, width)):
        raise MaskError(f"segmentation has size {abbreviate(segmentation['size'])}, its image [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        check([_as_bytes(counts)], height, width)
    elif (
        not isinstance(counts, list)
        or not all(type(count) is int and count >= 0 for count in counts)
        or sum(counts) != height * width
    ):
        raise MaskError(f"counts do not describe {height} x {width} pixels: {abbreviate(counts)}")


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(f"a polygon must be a list x, y, x, y, ... of at least three points, not {abbreviate(polygon)}")
    limit = _MAX_DISTANCE * max(height, width)
    # Faster than a loop; a sum is NaN if a coordinate is, which the comparisons of min and max may miss.
    if (
        not set(map(type, polygon)) <= {int, float}
        or not -limit <= min(polygon) <= max(polygon) <= limit
        or math.isnan(sum(polygon))
    ):
        value = next(v for v in polygon if type(v) not in (int, float) or not -limit <= v <= limit)
        raise MaskError(f"polygon coordinate {abbreviate(value)} must be a number between -{limit} and {limit}")
    if len(polygon) * (max(polygon) - min(polygon)) <= _MAX_OUTLINE:  # a bound of the outline, fast to compute
        return
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    outline = sum(math.dist(a, b) for a, b in pairwise([*points, points[0]]))
    if outline > _MAX_OUTLINE:
        raise MaskError(f"a polygon is {outline:.0f} pixels long, at most {_MAX_OUTLINE} are supported")
