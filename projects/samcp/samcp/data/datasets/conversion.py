"""Shared parts of the conversions of public releases."""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from proposal_cache import Patches
from proposal_cache.rle import encode_labels
from samcp.data.files import write_json
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

logger = logging.getLogger(__name__)


def convert_and_keep(
    names: Sequence[str], convert: Callable[[str], Any], kept: Path, *, workers: int, title: str
) -> list[Any]:
    """Apply a function to images and cache each result as a file, so that an interrupted run continues.

    Args:
        names: of the images.
        convert: image name -> JSON-serialisable result; with several workers it is pickled.
        kept: folder of the cached results, NAME.json; the caller removes it after writing the final json.
        workers: number of processes.
        title: of the progress bar.

    Returns:
        The results in the order of ``names``.
    """
    return parallel_map(names, partial(_convert_once, convert, kept), workers=workers, title=title)


def _convert_once(convert: Callable[[str], Any], kept: Path, name: str) -> Any:
    path = kept / f"{name}.json"
    with suppress(FileNotFoundError, ValueError):  # a damaged file is converted again
        return json.loads(path.read_text())
    result = convert(name)
    write_json(path, result)
    return result


def describe_segments(ids: np.ndarray, *, with_masks: bool) -> dict[int, dict[str, Any]]:
    """Compute the COCO json entries of the segments of an id map.

    Args:
        ids: (H, W) segment ids; 0 is skipped.
        with_masks: also encode the masks.

    Returns:
        Segment id -> "area" in pixels, "bbox" as XYWH and, with masks, "segmentation", a compressed RLE.
    """
    height, width = ids.shape
    found, rles = encode_labels(ids)
    masks = Patches.from_rles(height, width, rles)
    described: dict[int, dict[str, Any]] = {}
    for i, rle, area, (x0, y0, x1, y1) in zip(found, rles, masks.areas, masks.boxes, strict=True):
        described[int(i)] = {"area": int(area), "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)]}
        if with_masks:
            described[int(i)]["segmentation"] = {"size": [height, width], "counts": rle.decode("ascii")}
    described.pop(0, None)
    return described


def lists_images(path: Path, names: Collection[str]) -> bool:
    """Return whether a COCO json exists and lists exactly the images NAME.jpg."""
    try:
        images = json.loads(path.read_text())["images"]
    except (FileNotFoundError, ValueError):
        return False
    return {image["file_name"] for image in images} == {f"{name}.jpg" for name in names}


def need_images(paths: Sequence[Path], fix: str) -> None:
    """Raise DataError if images are missing; ``fix`` says in the message how to get them."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} images are missing, first {missing[0]}; {fix}")


def check_count(what: str, found: int, expected: int) -> None:
    """Log a warning if the number of files differs from that of the complete release."""
    if found != expected:
        logger.warning("%s: found %d, the whole release has %d", what, found, expected)
