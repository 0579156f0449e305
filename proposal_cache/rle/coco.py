"""Masks of COCO jsons that may come from anywhere: checked before pycocotools sees them, which trusts all it gets."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pycocotools import mask as coco

from proposal_cache.errors import MaskError
from proposal_cache.rle.codec import check

# pycocotools walks along a polygon in steps of a fifth of a pixel and trusts that there is memory for all of them.
_MAX_DISTANCE = 10  # of a point from the image, in lengths of the image's longer side
_MAX_OUTLINE = 1 << 21  # pixels along one polygon


def to_coco(rles: Sequence[bytes], height: int, width: int) -> list[dict[str, Any]]:
    """Return masks as pycocotools takes them: {"size": [height, width], "counts": bytes}."""
    return [{"size": [height, width], "counts": counts} for counts in rles]


def to_json(counts: bytes, height: int, width: int) -> dict[str, Any]:
    """Return a mask as a COCO json holds it: {"size": [height, width], "counts": str}."""
    return {"size": [height, width], "counts": counts.decode("ascii")}


def from_json(segmentation: Any, height: int, width: int) -> bytes:
    """Compressed counts of a mask in any form that COCO knows: compressed, uncompressed, polygons.

    Raises:
        MaskError: for anything else.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        return coco.merge(coco.frPyObjects(segmentation, height, width))["counts"]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise MaskError(
            f"its segmentation is neither a list of polygons nor {{'size', 'counts'}}: {shown(segmentation)}"
        )
    if segmentation["size"] != [height, width]:
        raise MaskError(f"its size is {shown(segmentation['size'])}, the image's [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        compressed = counts.encode(errors="surrogatepass")
        check([compressed], height, width)
        return compressed
    if (
        not isinstance(counts, list)
        or not all(type(count) is int and count >= 0 for count in counts)
        or sum(counts) != height * width
    ):
        raise MaskError(f"its counts are not those of {height} x {width} pixels: {shown(counts)}")
    return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(f"a polygon is a list of x, y, x, y, ... of three points or more, not {shown(polygon)}")
    far = _MAX_DISTANCE * max(height, width)
    for value in polygon:
        if type(value) not in (int, float) or not -far <= value <= far:
            raise MaskError(f"the coordinate {shown(value)} of a polygon is no number within {far} pixels of its image")
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    outline = sum(math.dist(a, b) for a, b in pairwise([*points, points[0]]))
    if outline > _MAX_OUTLINE:
        raise MaskError(f"a polygon is {outline:.0f} pixels long: {_MAX_OUTLINE} are possible")


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
